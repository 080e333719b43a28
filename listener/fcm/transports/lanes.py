"""The line of requests that wait for a connection. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

OPENING_LIMIT = 32
"""HTTP/1.1 connections, at most, that are being opened at once. Few, because open ones may become free first."""

OPENING_FOR_HIGH = 4
"""Connections, at most, that are opened in addition for requests of high priority."""

T = TypeVar("T")


class Lanes(Generic[T]):
    """Two lines: a request of high priority waits behind others of high priority only."""

    def __init__(self) -> None:
        self._high: deque[asyncio.Future[T]] = deque()
        self._normal: deque[asyncio.Future[T]] = deque()

    def __len__(self) -> int:
        return len(self._high) + len(self._normal)

    @property
    def high(self) -> int:
        """How many of high priority wait."""
        return len(self._high)

    def add(self, waiter: asyncio.Future[T], *, is_high: bool) -> None:
        """A request begins to wait."""
        (self._high if is_high else self._normal).append(waiter)

    def next(self) -> asyncio.Future[T] | None:
        """Takes the request whose turn it is out of the line; None: nobody waits."""
        if not (self._high or self._normal):
            return None
        return _first(self._high) or _first(self._normal)

    def next_to_fail(self) -> asyncio.Future[T] | None:
        """Takes the request that is to fail first out of the line: normal priority before high."""
        return _first(self._normal) or _first(self._high)

    def remove(self, waiter: asyncio.Future[T]) -> bool:
        """A request no longer waits. False: it was not in the line."""
        for lane in (self._high, self._normal):
            if waiter in lane:
                lane.remove(waiter)
                return True
        return False


def _first(lane: deque[asyncio.Future[T]]) -> asyncio.Future[T] | None:
    while lane:
        waiter = lane.popleft()
        if not waiter.done():
            return waiter
    return None
