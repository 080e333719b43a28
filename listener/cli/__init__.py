"""The command push-listener."""
