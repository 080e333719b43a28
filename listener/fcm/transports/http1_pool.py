"""The connections of the HTTP/1.1 transport to one host: which is used next, and when another one is opened."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
import ssl
from collections import deque
from collections.abc import Sequence

import aiohappyeyeballs
from aiohappyeyeballs import AddrInfoType

from listener.fcm.fault import SendFault
from listener.fcm.transports.base import DNS_TTL
from listener.fcm.transports.frames import clear_frames
from listener.fcm.transports.http1_connection import Http1Connection
from listener.fcm.transports.lanes import OPENING_FOR_HIGH, OPENING_LIMIT, Lanes

_TRIES = 3
"""Connections, at most, that a request is given in turn, if each was closed before the request could be written."""

_OUT_OF_FILES_PAUSE_S = 1.0
"""Seconds before another connection is opened after the process has reached its limit of open files."""

_CLOSING_S = 1.0
"""Seconds, at most, to wait at the end until the connections are closed. They are cut, so the network has no say in it,
but the event loop may forget to say so."""

_HAPPY_EYEBALLS_S = 0.25
"""Seconds before the next address is tried as well. Source: RFC 8305, section 5."""


class Http1Pool:
    """The connections to one host. It hands out the one that was used last, so that the others can expire.

    Use it in one event loop. A request takes an idle connection; if there is none, it waits for the first one that
    becomes free or is opened meanwhile. Requests of high priority come first.

    Args:
        host: a name or an address.
        port: where it listens.
        tls: None for plain TCP.
        connect_timeout: seconds that a request waits for a connection.
        request_timeout: seconds for a whole request; for the text of its fault.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
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
        self._all: set[Http1Connection] = set()
        self._all_closed = asyncio.Event()
        self._idle: deque[Http1Connection] = deque()
        self._waiting: Lanes[Http1Connection] = Lanes()
        self._opening: set[asyncio.Task[None]] = set()
        self._no_opening_before = -math.inf
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_interval = min(0.25, request_timeout / 20)

    # --- for a request ---------------------------------------------------------------------------------

    def take_idle(self) -> Http1Connection | None:
        """A connection that is free now; None if there is none."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
        return None

    async def acquire(self, deadline: float, *, is_high: bool = False) -> Http1Connection:
        """The first connection that becomes free or is opened.

        Args:
            deadline: when the request has to be done, on the event loop's clock.
            is_high: whether it goes before requests of normal priority.

        Raises:
            SendFault: there was none in time, or opening one failed. Nothing has been sent.
        """
        for _ in range(_TRIES):
            connection = await self._next(min(self._connect_timeout, deadline - self._now()), is_high)
            if connection.is_usable:  # The server may have closed it since.
                return connection
        reason = f"{self._host} closes connections before anything can be sent"
        raise SendFault("CONNECT", reason, ambiguous=False)

    async def _next(self, seconds: float, is_high: bool) -> Http1Connection:
        waiter: asyncio.Future[Http1Connection] = self._loop.create_future()
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

    def add(self, connection: Http1Connection) -> None:
        """A connection has been opened."""
        self._all.add(connection)
        self._all_closed.clear()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timer_interval, self._expire)

    def release(self, connection: Http1Connection) -> None:
        """A connection is free: it goes to the request whose turn it is, else it is idle."""
        if self._is_closed:
            connection.abort()
            return
        connection.idle_since = self._now()
        if (waiter := self._waiting.next()) is not None:
            waiter.set_result(connection)
        else:
            self._idle.append(connection)

    def discard(self, connection: Http1Connection) -> None:
        """A connection has been closed."""
        self._all.discard(connection)
        if not self._all:
            self._all_closed.set()
        if connection in self._idle:
            self._idle.remove(connection)

    # --- opening ---------------------------------------------------------------------------------------

    def _open_more(self) -> None:
        if self._is_closed or self._now() < self._no_opening_before:
            return
        limit = OPENING_LIMIT + min(OPENING_FOR_HIGH, self._waiting.high)
        while len(self._opening) < min(limit, len(self._waiting)):
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
            self.release(connection)

    async def _connect(self) -> Http1Connection:
        sock = await aiohappyeyeballs.start_connection(
            await self._resolve(), happy_eyeballs_delay=_HAPPY_EYEBALLS_S, interleave=1
        )
        host = None if self._tls is None else self._host
        connection = Http1Connection(self, self._loop)
        try:
            await self._loop.create_connection(
                lambda: connection, sock=sock, ssl=self._tls, server_hostname=host
            )
        except BaseException:
            # uvloop may still finish the handshake, and then never says that the connection is lost.
            self.discard(connection)
            connection.abort()
            raise
        return connection

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
            self._fail_first_waiter(SendFault("CONNECT", "the connections are being closed", ambiguous=False))
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
