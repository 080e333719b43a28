"""What a person sees of pushes and does with them: for the page and for the commands alike."""
