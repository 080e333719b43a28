"""Ends a command on Ctrl-C without a traceback, and on SIGTERM in a container.

While a command works, Ctrl-C raises KeyboardInterrupt, so that the command can clean up. While modules are imported and
while the interpreter ends, no code expects that exception, so Ctrl-C ends the process at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 130
"""The exit code of a program that Ctrl-C has ended. Source: bash, "Exit Status": 128 plus the signal's number."""


def end_at_once() -> None:
    """From now on Ctrl-C ends the process without any cleanup."""
    signal.signal(signal.SIGINT, _end)


def end_by_sigterm_as_first_process() -> None:
    """Lets SIGTERM end a command that is process 1, as in a container, unless the command has a handler of its own.

    It ends any other process anyway. The kernel keeps from process 1 every signal for which that process has no
    handler. Source: kill(2).
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))


def raise_again() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, unless the process has a handler of its own."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def importing() -> Iterator[None]:
    """Ctrl-C ends the process at once while the block imports what a command needs for its work.

    If the process has a handler of its own, that handler stays.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: object) -> None:
    os._exit(EXIT_CODE)
