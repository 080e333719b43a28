"""Connections that belong to an event loop, and how they are closed after the loop has ended."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


def is_cancelled() -> bool:
    """Whether the running task is being cancelled. A CancelledError may also come from a task that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class PerLoop(Generic[T]):
    """One thing for each event loop of this process that asks for it.

    A loop may end without a call of ``close``: Django's ``async_to_sync`` and a Celery task make a loop for each call.
    The things of closed loops are closed when another loop asks for the first time, when this object is garbage
    collected, and when the interpreter ends.
    """

    def __init__(self, make: Callable[[], T], let_go: Callable[[T], object]) -> None:
        """Makes nothing yet.

        Args:
            make: makes the thing for the running loop.
            let_go: closes the thing without its loop, which is closed already.
        """
        self._make = make
        self._let_go = let_go
        # The key includes the process, because a child must not close things that it has inherited and that its parent
        # may still use. The methods of a dictionary are atomic, so threads with their own loops need no lock. A fork
        # could leave a lock locked for ever.
        self._things: dict[tuple[int, asyncio.AbstractEventLoop], T] = {}
        weakref.finalize(self, _forget_closed, self._things, let_go)

    def get(self) -> T:
        """The thing of the running loop."""
        key = (os.getpid(), asyncio.get_running_loop())
        thing = self._things.get(key)
        if thing is None:
            _forget_closed(self._things, self._let_go)
            thing = self._things[key] = self._make()
        return thing

    def pop(self) -> T | None:
        """Removes and returns the thing of the running loop; None if it has none."""
        return self._things.pop((os.getpid(), asyncio.get_running_loop()), None)


def _forget_closed(
    things: dict[tuple[int, asyncio.AbstractEventLoop], T], let_go: Callable[[T], object]
) -> None:
    for pid, loop in list(things.copy()):
        if pid == os.getpid() and loop.is_closed():
            thing = things.pop((pid, loop), None)
            if thing is not None:
                let_go(thing)
