"""What Ctrl-C does: never a traceback.

While modules are imported and while the interpreter ends, a KeyboardInterrupt would come out in the middle of code that
expects none. Then the process ends at once. While a command works it is raised, so that the command can clean up.
"""

from __future__ import annotations

import os
import signal

EXIT_CODE = 130
"""The one of a program that Ctrl-C has ended. Source: bash, "Exit Status": 128 and the number of the signal."""


def end_at_once() -> None:
    """From now on Ctrl-C ends the process without any cleanup."""
    signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, unless the process has a handler of its own."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: object) -> None:
    os._exit(EXIT_CODE)
