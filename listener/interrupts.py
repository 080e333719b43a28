"""What Ctrl-C does: never a traceback. And SIGTERM in a container.

While modules are imported and while the interpreter ends, a KeyboardInterrupt would come out in the middle of code that
expects none. Then the process ends at once. While a command works it is raised, so that the command can clean up.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 130
"""The one of a program that Ctrl-C has ended. Source: bash, "Exit Status": 128 and the number of the signal."""


def end_at_once() -> None:
    """From now on Ctrl-C ends the process without any cleanup."""
    signal.signal(signal.SIGINT, _end)


def end_by_sigterm_as_first_process() -> None:
    """Lets SIGTERM end a command that is process 1, as in a container, unless the command has a handler of its own.

    Elsewhere it does so anyway. From process 1 the kernel keeps signals that have no handler. Source: kill(2).
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

    Not where the process has a handler of its own.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: object) -> None:
    os._exit(EXIT_CODE)
