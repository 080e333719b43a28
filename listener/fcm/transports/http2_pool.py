"""Which requests share an HTTP/2 connection, and when another one is opened. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from listener.fcm.transports.lanes import Lanes

Client = TypeVar("Client")

STREAMS = 100
"""Requests at once on one connection: the streams that servers allow, Google's among them."""

OPENING_LIMIT = 10
"""Connections, at most, that are being opened at once."""

ASSUMED_OPEN_AFTER = 0.3
"""Seconds after which a connection counts as open although it has not answered its first request."""


class Http2Connection(Generic[Client]):
    """A client that keeps one connection. Until that is open, its capacity is one request."""

    __slots__ = ("capacity", "client", "idle_since", "in_flight")

    def __init__(self, client: Client) -> None:
        self.client = client
        self.in_flight = 0
        self.capacity = 1
        self.idle_since = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, as far as is known."""
        return self.capacity > 1


class Http2Pool(Generic[Client]):
    """As many connections as the requests in flight need. Use it in one event loop.

    A client without a connection would open one for each request that it is given, and throw all but one away. So
    each new connection gets one request; the others wait until that one is answered, but not longer than
    ``ASSUMED_OPEN_AFTER``: FCM may be slow to answer one push and quick to answer the next. Requests of high priority
    come first.

    Args:
        make_client: makes a client.
        keepalive: seconds after which a client closes an idle connection.
    """

    def __init__(self, make_client: Callable[[], Client], *, keepalive: float) -> None:
        self._make_client = make_client
        self._keepalive = keepalive
        self._loop = asyncio.get_running_loop()
        self._all: list[Http2Connection[Client]] = []
        self._with_capacity: list[Http2Connection[Client]] = []  # The last one is used next.
        self._waiting: Lanes[None] = Lanes()

    @property
    def clients(self) -> list[Client]:
        """The clients of all connections."""
        return [connection.client for connection in self._all]

    def take(self) -> Http2Connection[Client] | None:
        """A connection for one more request, to be given back with ``release``; None if all are full just now."""
        if self._with_capacity:
            connection = self._with_capacity[-1]
            if not connection.in_flight and self._loop.time() - connection.idle_since >= self._keepalive:
                connection.capacity = 1  # The client has closed it and opens another one.
        elif self._may_open():
            connection = Http2Connection(self._make_client())
            self._all.append(connection)
            self._with_capacity.append(connection)
        else:
            return None
        connection.in_flight += 1
        if connection.in_flight >= connection.capacity:
            self._with_capacity.pop()
            if connection.capacity == 1:
                self._loop.call_later(ASSUMED_OPEN_AFTER, self._assume_open, connection)
        return connection

    async def acquire(self, *, is_high: bool = False) -> Http2Connection[Client]:
        """A connection for one more request, as soon as there is one."""
        while (connection := self.take()) is None:
            waiter = self._loop.create_future()
            self._waiting.add(waiter, is_high=is_high)
            try:
                await waiter
            except asyncio.CancelledError:
                if not waiter.cancelled():
                    self._wake(1)  # The place goes to the next one.
                raise
        return connection

    def release(self, connection: Http2Connection[Client], *, is_open: bool | None) -> None:
        """A request is done. ``is_open``: whether the connection is; None if the request does not tell."""
        if connection.in_flight == 1:
            connection.idle_since = self._loop.time()
        capacity = connection.capacity if is_open is None else STREAMS if is_open else 1
        self._change(connection, connection.in_flight - 1, capacity)

    def _change(self, connection: Http2Connection[Client], in_flight: int, capacity: int) -> None:
        was_full = connection.in_flight >= connection.capacity
        connection.in_flight, connection.capacity = in_flight, capacity
        is_full = in_flight >= capacity
        if was_full and not is_full:
            self._with_capacity.append(connection)
        elif is_full and not was_full:
            self._with_capacity.remove(connection)
        if self._waiting and not is_full:
            self._wake(capacity - in_flight)

    def _assume_open(self, connection: Http2Connection[Client]) -> None:
        if connection.in_flight:
            self._change(connection, connection.in_flight, STREAMS)

    def _may_open(self) -> bool:
        """Whether to open one more connection, given that all are full."""
        if len(self._all) < OPENING_LIMIT:
            return True
        opening = sum(connection.capacity == 1 for connection in self._all)
        return opening < OPENING_LIMIT and opening * STREAMS <= len(self._waiting)

    def _wake(self, most: int) -> None:
        while most and (waiter := self._waiting.next()) is not None:
            waiter.set_result(None)
            most -= 1
