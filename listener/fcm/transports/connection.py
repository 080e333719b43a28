"""What the pool and the transport expect of a connection of any HTTP version, and what a connection tells its pool."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

from listener.fcm.transports.base import Response


class Head(NamedTuple):
    """The head of a request, made once for each access token. Connections compare it by identity."""

    lines: bytes
    """For HTTP/1.1: everything up to the value of Content-Length."""
    fields: list[tuple[bytes, bytes]]
    """For HTTP/2: everything except the method and the scheme."""


class NotTaken(Exception):
    """The server has said that it did not carry out a request, so that it may be sent again."""


class Connection(Protocol):
    """A connection and the requests that are in flight on it."""

    capacity: int
    """Requests that it takes at once."""
    in_use: int
    """Requests that it has, or that have it reserved. The pool counts them."""
    idle_since: float
    """When its last request ended, on the event loop's clock. The pool sets it."""

    @property
    def is_usable(self) -> bool:
        """Whether a request may be written, as far as this side knows."""
        ...

    def send(self, head: Head, body: bytes, deadline: float) -> asyncio.Future[Response]:
        """Writes a request.

        Args:
            head: what comes before the body.
            body: the whole of it.
            deadline: on the event loop's clock; the pool calls ``expire`` soon after it.

        Returns:
            The answer, or a SendFault, or NotTaken.
        """
        ...

    def abandon(self, answer: asyncio.Future[Response]) -> None:
        """The caller of ``send`` no longer waits for this answer."""
        ...

    def expire(self, now: float) -> None:
        """Ends the requests whose time is up, or the connection if it has been idle for long."""
        ...

    def abort(self) -> None:
        """Ends the connection and the requests on it."""
        ...


class Owner(Protocol):
    """What a connection tells its pool."""

    request_timeout: float
    streams: int
    """Requests at once that a server of HTTP/2 is expected to allow, until it has said how many."""

    def add(self, connection: Connection) -> None:
        """The connection has been opened."""
        ...

    def release(self, connection: Connection) -> None:
        """A request on the connection has ended."""
        ...

    def offer(self, connection: Connection) -> None:
        """The connection takes requests again."""
        ...

    def resize(self, connection: Connection) -> None:
        """The server has said how many requests at once it allows."""
        ...

    def discard(self, connection: Connection) -> None:
        """The connection has been closed."""
        ...
