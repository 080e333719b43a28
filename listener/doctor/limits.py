"""How long each check may take, and the thread that ends with it.

A name server, a network or a database may never answer, and not every call has a timeout of its own: the resolver of
the C library has none. So each check runs in a thread that is left behind when its time is over.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. With a database that stops answering at any moment, what they allow adds up to less than 20."""

    resolve: float = 3.0
    """For the name of a host."""
    connect: float = 4.0
    """For a connection, login included."""
    mode: float = 9.0
    """For finding out whether an address is a pooler in transaction mode: some 120 round trips."""
    check: float = 6.0
    """For any other check of the database. Postgres itself gives up a little earlier."""
    still_there: float = 3.0
    """For finding out, after a check took too long, whether the database still answers."""
    fcm: float = 15.0
    """For all checks of FCM together, which are made beside those of the database."""
    whole: float = 60.0
    """For everything, with a database that answers slowly."""


@dataclass(slots=True)
class Deadline:
    """A number of seconds that several steps share."""

    seconds: float
    _began: float = field(default_factory=time.monotonic)

    def left(self, most: float) -> float:
        """The seconds that a step may take: ``most``, or what is left of all."""
        return max(0.0, min(most, self._began + self.seconds - time.monotonic()))


def begin(call: Callable[[], T]) -> concurrent.futures.Future[T]:
    """Starts a call in a thread that the end of the process does not wait for."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="doctor", daemon=True).start()
    return done


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call. Raises TimeoutError when it takes longer, and what the call raises."""
    return begin(call).result(timeout=seconds)
