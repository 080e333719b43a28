"""The command ``push-listener``: ``main`` and one module for each command, named after it."""
