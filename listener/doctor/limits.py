"""How long each check may take, and the threads that enforce it.

A name server, a network or a database may never answer, and not every call has its own timeout: the resolver of the C
library has none. So each check runs in a thread, which doctor abandons when the time is over.
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
    """Limits in seconds. If the database stops answering, at any moment, what they still allow is less than 20 s."""

    resolve: float = 3.0
    """For the name of a host."""
    connect: float = 4.0
    """For a connection, login included."""
    mode: float = 9.0
    """For finding out whether an address is a pooler in transaction mode, with about 120 round trips."""
    check: float = 6.0
    """For any other check of the database. Postgres itself gives up a little earlier."""
    still_there: float = 3.0
    """For finding out, after a check took too long, whether the database still answers."""
    fcm: float = 15.0
    """For all checks of FCM together. They run at the same time as those of the database."""
    whole: float = 60.0
    """For everything. Only a database that answers slowly needs so long."""


@dataclass(slots=True)
class Deadline:
    """A time limit that several steps share."""

    seconds: float
    _began: float = field(default_factory=time.monotonic)

    def left(self, most: float) -> float:
        """The seconds that a step may take: ``most``, or the rest of the shared limit if that is less."""
        return max(0.0, min(most, self._began + self.seconds - time.monotonic()))


def begin(call: Callable[[], T]) -> concurrent.futures.Future[T]:
    """Starts a call in a thread. The process does not wait for that thread when it ends."""
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
    """The result of a call. Raises TimeoutError if it takes longer than ``seconds``, and whatever the call raises."""
    return begin(call).result(timeout=seconds)
