"""push-listener: a row committed to push_notifications becomes a push, without polling."""

from importlib.metadata import version

__version__ = version("push-listener")
