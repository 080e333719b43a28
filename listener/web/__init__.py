"""What the listener serves over HTTP."""
