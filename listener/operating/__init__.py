"""What a person can see of pushes and do with them. The page and the commands share it."""
