"""push-listener: a row committed to push_notifications becomes a push, without polling."""

__version__ = "0.1.0"
