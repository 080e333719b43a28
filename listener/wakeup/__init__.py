"""When to look at the queue."""
