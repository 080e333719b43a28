"""The connections of the direct transport to one host: which is used next, and when another one is opened."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
import ssl
from collections.abc import Sequence
from typing import cast

import aiohappyeyeballs
from aiohappyeyeballs import AddrInfoType

from listener.fcm.fault import SendFault
from listener.fcm.transports.base import DNS_TTL
from listener.fcm.transports.connection import Connection
from listener.fcm.transports.frames import clear_frames
from listener.fcm.transports.http1_connection import Http1Connection
from listener.fcm.transports.http2_connection import STREAMS, Http2Connection
from listener.fcm.transports.lanes import OPENING_FOR_HIGH, OPENING_LIMIT, Lanes

_TRIES = 3
"""Connections, at most, that a request is given in turn, if each was closed before the request could be written."""

_OUT_OF_FILES_PAUSE_S = 1.0
"""Seconds before another connection is opened after the process has reached its limit of open files."""

_CLOSING_S = 1.0
"""Seconds, at most, to wait at the end until the connections are closed. They are aborted, so the network cannot delay
that, but uvloop does not always report it."""

_HAPPY_EYEBALLS_S = 0.25
"""Seconds before the next address is tried as well. Source: RFC 8305, section 5."""


class Pool:
    """The connections to one host. It hands out the one that was used last, so that the others can expire.

    Use it in one event loop. A request takes a connection that has room for it; if there is none, it waits for the
    first one that gets room or is opened meanwhile. Requests of high priority come first.

    Over TLS the server chooses between the versions of HTTP that the context offers; without, it is HTTP/1.1.

    Args:
        host: a name or an address.
        port: where it listens.
        tls: None for plain TCP.
        http2: whether ``tls`` offers HTTP/2.
        connect_timeout: seconds that a request waits for a connection.
        request_timeout: seconds for a whole request; for the text of its fault.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        http2: bool,
        connect_timeout: float,
        request_timeout: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._host = host
        self._port = port
        self._tls = tls
        self._connect_timeout = connect_timeout
        self.request_timeout = request_timeout
        self._addresses: Sequence[AddrInfoType] = []
        self._addresses_until = -math.inf
        self._resolving = asyncio.Lock()
        self._all: set[Connection] = set()
        self._all_closed = asyncio.Event()
        self._free: dict[Connection, None] = {}
        """Those that have room; the last one is used next."""
        self.streams = STREAMS
        """See ``Owner.streams``."""
        self._expected = STREAMS if http2 else 1
        """Requests that the next connection is expected to have room for."""
        self._waiting: Lanes[Connection] = Lanes()
        self._opening: set[asyncio.Task[None]] = set()
        self._no_opening_before = -math.inf
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_interval = min(0.25, request_timeout / 20)

    # --- for a request ---------------------------------------------------------------------------------

    def take(self) -> Connection | None:
        """A connection for one more request, to be given back with ``release``; None if there is none just now."""
        while self._free:
            connection = next(reversed(self._free))
            if connection.is_usable:
                self._use(connection)
                return connection
            del self._free[connection]
        return None

    def _use(self, connection: Connection) -> None:
        connection.in_use += 1
        if connection.in_use >= connection.capacity:
            self._free.pop(connection, None)

    async def acquire(self, deadline: float, *, is_high: bool = False) -> Connection:
        """The first connection that gets room or is opened, to be given back with ``release``.

        Args:
            deadline: when the request has to be done, on the event loop's clock.
            is_high: whether it goes before requests of normal priority.

        Raises:
            SendFault: there was none in time, or opening one failed. Nothing has been sent.
        """
        for _ in range(_TRIES):
            connection = await self._next(min(self._connect_timeout, deadline - self._now()), is_high)
            # The server may have closed it since, or said that it allows fewer requests.
            if connection.is_usable and connection.in_use <= connection.capacity:
                return connection
            self.release(connection)
        raise self._useless()

    async def _next(self, seconds: float, is_high: bool) -> Connection:
        if self._is_closed:
            raise _closing()
        waiter: asyncio.Future[Connection] = self._loop.create_future()
        self._waiting.add(waiter, is_high=is_high)
        self._open_more()
        try:
            async with asyncio.timeout(seconds):
                return await waiter
        except (TimeoutError, asyncio.CancelledError) as error:
            if not self._waiting.remove(waiter) and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())  # The connection came at the same moment.
            if isinstance(error, TimeoutError):
                raise self._fault(error) from None
            raise
        finally:
            del waiter  # It refers to its fault, which refers to this frame.

    # --- for a connection ------------------------------------------------------------------------------

    def add(self, connection: Connection) -> None:
        """See ``Owner.add``."""
        self._all.add(connection)
        self._all_closed.clear()
        self._expected = connection.capacity
        if self._timer is None:
            self._timer = self._loop.call_later(self._timer_interval, self._expire)

    def release(self, connection: Connection) -> None:
        """A request has ended, or never began: its place goes to the request whose turn it is."""
        connection.in_use -= 1
        connection.idle_since = self._now()
        self.offer(connection)

    def resize(self, connection: Connection) -> None:
        """See ``Owner.resize``."""
        self._expected = self.streams = max(1, connection.capacity)
        self.offer(connection)

    def offer(self, connection: Connection) -> None:
        """See ``Owner.offer``. The room that a connection has goes to requests that wait; others may take the rest."""
        if not connection.is_usable:
            return
        while connection.in_use < connection.capacity and (waiter := self._waiting.next()) is not None:
            connection.in_use += 1
            waiter.set_result(connection)
        if connection.in_use < connection.capacity:
            self._free[connection] = None
        else:
            self._free.pop(connection, None)

    def discard(self, connection: Connection) -> None:
        """See ``Owner.discard``."""
        self._all.discard(connection)
        self._free.pop(connection, None)
        if not self._all:
            self._all_closed.set()

    # --- opening ---------------------------------------------------------------------------------------

    def _open_more(self) -> None:
        if self._is_closed or self._now() < self._no_opening_before:
            return
        limit = OPENING_LIMIT + min(OPENING_FOR_HIGH, self._waiting.high)
        while len(self._opening) < min(limit, math.ceil(len(self._waiting) / self._expected)):
            task = asyncio.create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        self._open_more()

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await self._connect()
        except Exception as error:
            self._addresses_until = -math.inf
            clear_frames(error)
            if self._all and isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                # The requests that wait share the connections that there are.
                self._no_opening_before = self._now() + _OUT_OF_FILES_PAUSE_S
            else:
                self._fail_first_waiter(self._fault(error))
        else:
            self.offer(connection)
            if not connection.is_usable:
                # Otherwise connections would be opened one after the other as long as the request waits.
                self._fail_first_waiter(self._useless())

    async def _connect(self) -> Connection:
        sock = await aiohappyeyeballs.start_connection(
            await self._resolve(), happy_eyeballs_delay=_HAPPY_EYEBALLS_S, interleave=1
        )
        host = None if self._tls is None else self._host
        door = _Door(self, self._loop)
        try:
            await self._loop.create_connection(lambda: door, sock=sock, ssl=self._tls, server_hostname=host)
        except BaseException:
            # uvloop may still finish the handshake, and then never says that the connection is lost.
            door.shut()
            raise
        assert door.connection is not None
        return door.connection

    async def _resolve(self) -> Sequence[AddrInfoType]:
        """The addresses of the host; one request to the resolver serves all connections that are being opened."""
        async with self._resolving:
            if self._now() >= self._addresses_until:
                self._addresses = await self._loop.getaddrinfo(
                    self._host, self._port, type=socket.SOCK_STREAM
                )
                self._addresses_until = self._now() + DNS_TTL
            return self._addresses

    def _fail_first_waiter(self, fault: SendFault) -> None:
        if (waiter := self._waiting.next_to_fail()) is not None:
            waiter.set_exception(fault)

    def _fault(self, error: Exception) -> SendFault:
        """The fault of a request that got no connection."""
        match error:
            case TimeoutError():
                code, reason = "CONNECT", f"no connection to {self._host} within {self._connect_timeout:g} s"
            case UnicodeError():
                code, reason = "DNS", f"{self._host} is not a valid host name"
            case socket.gaierror():
                code, reason = "DNS", f"cannot resolve {self._host}: {error.strerror}"
            case ssl.SSLCertVerificationError():
                code, reason = "TLS", f"the certificate of {self._host} is not valid: {error.verify_message}"
            case ssl.SSLError():
                code, reason = "TLS", f"no TLS with {self._host}: {error.reason or type(error).__name__}"
            case _:
                why = getattr(error, "strerror", None) or type(error).__name__
                code, reason = "CONNECT", f"cannot connect to {self._host}:{self._port}: {why}"
        return SendFault(code, reason, ambiguous=False)

    def _useless(self) -> SendFault:
        """The fault of a request whose connection was closed at once."""
        reason = f"{self._host} closes connections before anything can be sent"
        return SendFault("CONNECT", reason, ambiguous=False)

    # --- the end ---------------------------------------------------------------------------------------

    def _expire(self) -> None:
        """Ends the requests that take too long and the connections that have been idle for long.

        One timer serves all connections: a timer for each request would cost more than the request.
        """
        now = self._now()
        for connection in list(self._all):
            connection.expire(now)
        self._timer = self._loop.call_later(self._timer_interval, self._expire) if self._all else None

    async def close(self) -> None:
        """Closes all connections, also those that are being opened. Returns when they are closed."""
        self._is_closed = True
        while self._waiting:
            self._fail_first_waiter(_closing())
        for task in self._opening:
            task.cancel()
        if self._opening:
            await asyncio.wait(self._opening)
        for connection in list(self._all):
            connection.abort()
        if self._all:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSING_S):
                    await self._all_closed.wait()
        if self._timer is not None:
            self._timer.cancel()


def _closing() -> SendFault:
    """The fault of a request that got no connection before the end."""
    return SendFault("CONNECT", "the connections are being closed", ambiguous=False)


class _Door(asyncio.Protocol):
    """A connection until it is known which version of HTTP it speaks."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._is_shut = False
        self.connection: Http1Connection | Http2Connection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tls = transport.get_extra_info("ssl_object")
        speaks_http2 = tls is not None and tls.selected_alpn_protocol() == "h2"
        connection = (Http2Connection if speaks_http2 else Http1Connection)(self._pool, self._loop)
        if self._is_shut:
            connection.abort()
        self.connection = connection
        # uvloop's class derives from nothing of asyncio's.
        cast(asyncio.Transport, transport).set_protocol(connection)
        connection.connection_made(transport)

    def shut(self) -> None:
        """Nobody waits for the connection any more."""
        self._is_shut = True
        if self.connection is not None:
            self.connection.abort()
            # uvloop does not always call this, and then the reference cycle would wait for the garbage collector.
            self.connection.connection_lost(None)
