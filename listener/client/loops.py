"""Connections that belong to an event loop, and what becomes of them when the loop has ended."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


def is_cancelled() -> bool:
    """Whether somebody cancels the running task: a CancelledError may also come from a task that it has waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class PerLoop(Generic[T]):
    """One thing for each event loop of this process that asks for it.

    A loop may end without a call of ``close``: Django's ``async_to_sync`` and a Celery task make one for each call.
    What belonged to loops that are closed is let go of when another loop asks for the first time, when this is no
    longer used, and when the interpreter ends.
    """

    def __init__(self, make: Callable[[], T], let_go: Callable[[T], object]) -> None:
        """Makes nothing yet.

        Args:
            make: makes the thing for the running loop.
            let_go: closes it without its loop, which is closed already.
        """
        self._make = make
        self._let_go = let_go
        # Also by process: a child must not close what it has inherited, and its parent may still use. The methods of
        # a dictionary are atomic, so threads with loops of their own need no lock, which a fork could leave locked.
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
        """The thing of the running loop, which is forgotten; None if there is none."""
        return self._things.pop((os.getpid(), asyncio.get_running_loop()), None)


def _forget_closed(
    things: dict[tuple[int, asyncio.AbstractEventLoop], T], let_go: Callable[[T], object]
) -> None:
    for pid, loop in list(things.copy()):
        if pid == os.getpid() and loop.is_closed():
            thing = things.pop((pid, loop), None)
            if thing is not None:
                let_go(thing)
