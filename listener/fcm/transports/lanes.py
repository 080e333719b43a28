"""Which requests share a connection, and when there have to be more. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Client = TypeVar("Client")

ROOM = 100
"""Requests at once on one connection: the streams that servers allow on one of HTTP/2, Google's among them."""

OPENING = 10
"""Lanes, the most, that are opened at once."""

HEAD_START = 0.3
"""Seconds, the most, that the first request on a lane is left alone: time to connect in."""


class Lane(Generic[Client]):
    """A client with a connection of its own, or the hope of one: then it has room for one request."""

    __slots__ = ("client", "idle_since", "in_flight", "room")

    def __init__(self, client: Client) -> None:
        self.client = client
        self.in_flight = 0
        self.room = 1
        self.idle_since = 0.0


class Lanes(Generic[Client]):
    """As many lanes as the requests in flight need. Use it in one event loop.

    A client that has no connection yet would open one for each request that it is given, and throw all but one
    away. So the first requests go alone, each on a lane of its own; the others wait until one of those is answered,
    but not for long: what keeps FCM from answering one push may not concern the next.

    Args:
        make: makes a client.
        keep: seconds after which a client closes a connection that is not used.
    """

    def __init__(self, make: Callable[[], Client], *, keep: float) -> None:
        self._make = make
        self._keep = keep
        self._loop = asyncio.get_running_loop()
        self._all: list[Lane[Client]] = []
        self._free: list[Lane[Client]] = []  # those with room; the one to be used next is last
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def clients(self) -> list[Client]:
        """Those of all lanes."""
        return [lane.client for lane in self._all]

    def take(self) -> Lane[Client] | None:
        """A place for one request, to be given back with ``done``; None if there is none just now."""
        if self._free:
            lane = self._free[-1]
            if not lane.in_flight and self._loop.time() - lane.idle_since >= self._keep:
                lane.room = 1
        elif self._may_open():
            lane = Lane(self._make())
            self._all.append(lane)
            self._free.append(lane)
        else:
            return None
        lane.in_flight += 1
        if lane.in_flight >= lane.room:
            self._free.pop()
            if lane.room == 1:
                self._loop.call_later(HEAD_START, self._head_start_is_over, lane)
        return lane

    async def wait(self) -> Lane[Client]:
        """The same, as soon as there is one."""
        while (lane := self.take()) is None:
            place = self._loop.create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if not place.cancelled():
                    self._wake(1)
                raise
        return lane

    def done(self, lane: Lane[Client], *, connected: bool | None) -> None:
        """Gives a place back. ``connected``: whether there is a connection; None if that is not known."""
        if lane.in_flight == 1:
            lane.idle_since = self._loop.time()
        room = lane.room if connected is None else ROOM if connected else 1
        self._change(lane, lane.in_flight - 1, room)

    def _change(self, lane: Lane[Client], in_flight: int, room: int) -> None:
        was_full = lane.in_flight >= lane.room
        lane.in_flight, lane.room = in_flight, room
        is_full = in_flight >= room
        if was_full and not is_full:
            self._free.append(lane)
        elif is_full and not was_full:
            self._free.remove(lane)
        if self._waiting and not is_full:
            self._wake(room - in_flight)

    def _head_start_is_over(self, lane: Lane[Client]) -> None:
        if lane.in_flight:
            self._change(lane, lane.in_flight, ROOM)

    def _may_open(self) -> bool:
        """Whether there should be one more lane, when all are full."""
        if len(self._all) < OPENING:
            return True
        opening = sum(lane.room == 1 for lane in self._all)
        return opening < OPENING and opening * ROOM <= len(self._waiting)

    def _wake(self, most: int) -> None:
        while most and self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                most -= 1
