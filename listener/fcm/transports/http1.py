"""HTTP/1.1 on bare asyncio, parsed by httptools: what our POST needs and no more. docs/transports.md says why."""

from __future__ import annotations

import asyncio
import errno
import math
import re
import socket
import ssl
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import cast
from urllib.parse import urlsplit

import aiohappyeyeballs
import httptools
from aiohappyeyeballs import AddrInfoType

from listener.fcm.fault import SendFault
from listener.fcm.transports.aiohttp import AiohttpTransport
from listener.fcm.transports.base import (
    ANSWER_LIMIT,
    DNS_TTL,
    ENCODING,
    KEEPALIVE,
    PORTS,
    USER_AGENT,
    Response,
    check_timeouts,
    proxy_for,
)

_INFORMATION = re.compile(rb"HTTP/1\.[01] 1")

_TRIES = 3

# Another try to make a connection when this process may have no more files open.
_WITHOUT_FILES_S = 1.0

_OPENING = 32
"""Connections, the most, that are being made at once: while they are, those there are may have become free."""

_HAPPY_EYEBALLS_S = 0.25
"""Seconds before the next address is tried as well. Source: RFC 8305, section 5."""


class AsyncioTransport:
    """A pool of keep-alive HTTP/1.1 connections, as many as there are requests in flight. See ``Transport``.

    Create it inside the running event loop. A request is never repeated here. Through a proxy, aiohttp carries them.

    Args:
        connect_timeout: seconds for a connection: for one to become free, or for DNS, TCP and TLS together.
        timeout: seconds for the whole request. Source: Firebase, "Scale FCM": at least 10 s.
    """

    def __init__(self, *, connect_timeout: float = 10.0, timeout: float = 15.0) -> None:
        check_timeouts(connect_timeout, timeout)
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._routes: dict[str, _Route | None] = {}
        self._proxied: AiohttpTransport | None = None
        self._closed = False

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Response:
        """See ``Transport.post``."""
        if self._closed:
            raise RuntimeError("the transport is closed")
        try:
            route = self._routes[url]
        except KeyError:
            route = self._routes[url] = self._route(url)
        if route is None:
            if self._proxied is None:
                self._proxied = AiohttpTransport(connect_timeout=self._connect_timeout, timeout=self._timeout)
            return await self._proxied.post(url, headers, body)
        head = route.head(headers)
        due = route.pool.now() + self._timeout
        connection = route.pool.take() or await route.pool.wait(due)
        answer = connection.send(head, body, due)
        try:
            return await answer
        except asyncio.CancelledError:
            connection.forget(answer)
            raise

    async def close(self) -> None:
        """See ``Transport.close``."""
        self._closed = True
        for route in self._routes.values():
            if route is not None:
                await route.pool.close()
        if self._proxied is not None:
            await self._proxied.close()

    def _route(self, url: str) -> _Route | None:
        if proxy_for(url) is not None:
            return None
        return _Route(url, self._connect_timeout, self._timeout)


class _Route:
    """One URL: its connections, and what each request to it begins with."""

    def __init__(self, url: str, connect_timeout: float, timeout: float) -> None:
        parts = urlsplit(url)
        host, tls = parts.hostname or "", parts.scheme == "https"
        default = PORTS[parts.scheme]
        port = parts.port or default
        self.pool = _Pool(host, port, _trusting() if tls else None, connect_timeout, timeout)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        shown = f"[{host}]" if ":" in host else host
        self._first = f"POST {path} HTTP/1.1\r\nHost: {shown}" + (f":{port}" if port != default else "")
        self._head = b""
        self._headers: Mapping[str, str] = {}

    def head(self, headers: Mapping[str, str]) -> bytes:
        """All of a request up to the length of its body."""
        if headers is not self._headers:
            lines = [self._first, f"User-Agent: {USER_AGENT}"]
            for name, value in {**ENCODING, **headers}.items():
                if "\r" in value or "\n" in value:
                    raise ValueError(f"the header {name} is of more than one line")
                lines.append(f"{name}: {value}")
            self._head = "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")
            self._headers = headers
        return self._head


class _Pool:
    """The connections to one host. The one that was used last is taken first, so that the others grow old."""

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, connect_timeout: float, timeout: float
    ) -> None:
        self.timeout = timeout
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self.promise = self._loop.create_future
        self._host = host
        self._port = port
        self._addresses: Sequence[AddrInfoType] = []
        self._addresses_until = -math.inf
        self._resolving = asyncio.Lock()
        self._tls = tls
        self._connect_timeout = connect_timeout
        self._all: set[_Connection] = set()
        self._emptied = asyncio.Event()
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[asyncio.Future[_Connection]] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._none_before = -math.inf
        self._is_closed = False
        self._sweep: asyncio.TimerHandle | None = None
        self._every = min(0.25, timeout / 20)

    def take(self) -> _Connection | None:
        """A connection that is free; None if none is."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
        return None

    async def wait(self, due: float) -> _Connection:
        """The first that becomes free, or that can be made, in time. Raises SendFault: nothing has been sent."""
        for _ in range(_TRIES):
            connection = await self._wait(min(self._connect_timeout, due - self.now()))
            if connection.is_usable:  # it may have been closed before its turn came
                return connection
        reason = f"{self._host} closes connections before anything can be sent"
        raise SendFault("CONNECT", reason, ambiguous=False)

    async def _wait(self, seconds: float) -> _Connection:
        place: asyncio.Future[_Connection] = self.promise()
        self._waiting.append(place)
        self._open_more()
        try:
            async with asyncio.timeout(seconds):
                return await place
        except (TimeoutError, asyncio.CancelledError) as error:
            if place in self._waiting:
                self._waiting.remove(place)
            elif not place.cancelled() and place.exception() is None:
                self.give_back(place.result())  # it came at the same moment
            if isinstance(error, TimeoutError):
                raise self._not_connected(error) from None
            raise

    def give_back(self, connection: _Connection) -> None:
        """It is free."""
        if self._is_closed:
            connection.abort()
            return
        connection.idle_since = self.now()
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(connection)
                return
        self._idle.append(connection)

    def made(self, connection: _Connection) -> None:
        """There is one more."""
        self._all.add(connection)
        self._emptied.clear()
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._every, self._look_after)

    def lost(self, connection: _Connection) -> None:
        """It is no more."""
        self._all.discard(connection)
        if not self._all:
            self._emptied.set()
        if connection in self._idle:
            self._idle.remove(connection)

    async def close(self) -> None:
        """Ends all connections, and those that are being made."""
        self._is_closed = True
        while self._waiting:
            self._refuse(SendFault("CONNECT", "the connections are being closed", ambiguous=False))
        for task in self._opening:
            task.cancel()
        if self._opening:
            await asyncio.wait(self._opening)
        for connection in list(self._all):
            connection.abort()
        if self._all:
            await self._emptied.wait()
        if self._sweep is not None:
            self._sweep.cancel()

    def _open_more(self) -> None:
        if self._is_closed or self.now() < self._none_before:
            return
        while len(self._opening) < min(_OPENING, len(self._waiting)):
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
            if self._all and isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                self._none_before = self.now() + _WITHOUT_FILES_S  # those that there are must do
            else:
                self._refuse(self._not_connected(error))
        else:
            self.give_back(connection)

    def _refuse(self, fault: SendFault) -> None:
        """Tells whoever has waited longest that it is in vain."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(fault)
                return

    async def _resolve(self) -> Sequence[AddrInfoType]:
        """Asked once for all who connect, and not again for a while."""
        async with self._resolving:
            if self.now() >= self._addresses_until:
                self._addresses = await self._loop.getaddrinfo(
                    self._host, self._port, type=socket.SOCK_STREAM
                )
                self._addresses_until = self.now() + DNS_TTL
            return self._addresses

    async def _connect(self) -> _Connection:
        found = await self._resolve()
        sock = await aiohappyeyeballs.start_connection(
            found, happy_eyeballs_delay=_HAPPY_EYEBALLS_S, interleave=1
        )
        host = None if self._tls is None else self._host
        _, connection = await self._loop.create_connection(
            lambda: _Connection(self), sock=sock, ssl=self._tls, server_hostname=host
        )
        return connection

    def _not_connected(self, error: Exception) -> SendFault:
        match error:
            case TimeoutError():
                code, reason = "CONNECT", f"no connection to {self._host} within {self._connect_timeout:g} s"
            case UnicodeError():
                code, reason = "DNS", f"{self._host} is not the name of a host"
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

    def _look_after(self) -> None:
        """Ends requests that take too long, and connections that have long been idle.

        One timer for all of them: one for each request would cost more than the request.
        """
        now = self.now()
        for connection in list(self._all):
            connection.look_after(now)
        self._sweep = self._loop.call_later(self._every, self._look_after) if self._all else None


class _Connection(asyncio.Protocol):
    """One connection, and the request that is under way on it."""

    __slots__ = (
        "_answer",
        "_body",
        "_due",
        "_head",
        "_is_closed",
        "_parser",
        "_pool",
        "_status",
        "_transport",
        "idle_since",
    )

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._answer: asyncio.Future[Response] | None = None
        self._due = 0.0
        self._is_closed = False
        self.idle_since = pool.now()
        self._begin()

    def _begin(self) -> None:
        self._status: int | None = None
        self._head = b""
        self._body = b""

    @property
    def is_usable(self) -> bool:
        """Whether a request may be written, as far as is known."""
        return not (self._is_closed or self._transport.is_closing())

    def send(self, head: bytes, body: bytes, due: float) -> asyncio.Future[Response]:
        """Writes a request. The answer comes with the future, or a SendFault: soon after ``due`` at the latest."""
        self._answer = answer = self._pool.promise()
        self._due = due
        self._begin()
        self._transport.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))
        return answer

    def forget(self, answer: asyncio.Future[Response]) -> None:
        """Nobody waits for this answer any more."""
        if self._answer is answer:
            self._transport.abort()

    def abort(self) -> None:
        """Ends it, and what is under way on it."""
        self._fail("RESET", "the connections are being closed")
        self._transport.abort()

    def look_after(self, now: float) -> None:
        """Gives up what takes too long."""
        if self._answer is None:
            if now - self.idle_since >= KEEPALIVE:
                self._transport.close()
        elif now >= self._due:
            self._fail("TIMEOUT", f"no answer within {self._pool.timeout:g} s")

    # --- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has classes of its own
        self._parser = httptools.HttpResponseParser(self)
        self._pool.made(self)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self._transport.abort()  # nobody has asked: it cannot be told what a further answer would belong to
            return
        if self._status is None:
            self._head = self._head + data if self._head else data
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("PROTOCOL", "the answer is not HTTP")
        if self._status is None and len(self._head) > ANSWER_LIMIT:
            self._fail("PROTOCOL", "the answer's header has no end")

    def eof_received(self) -> None:
        self._is_closed = True

    def connection_lost(self, exc: Exception | None) -> None:
        ended, self._is_closed = self._is_closed, True
        self._pool.lost(self)
        if self._answer is not None and ended and exc is None and self._lasts_to_the_end():
            self._finish(keep=False)
        else:
            self._fail(
                "RESET", f"the connection was {'closed' if exc is None else 'lost'} before the answer's end"
            )

    # --- called by httptools

    def on_message_begin(self) -> None:
        if self._answer is None:
            self._transport.abort()  # a second answer to one request

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body
        if len(self._body) >= ANSWER_LIMIT:
            self._finish(keep=False)

    def on_message_complete(self) -> None:
        if self._status is not None and 100 <= self._status < 200:
            self._status = None  # not the answer yet
        else:
            self._finish(keep=self._parser.should_keep_alive())

    # --- and what comes of it

    def _lasts_to_the_end(self) -> bool:
        """Whether the answer's body ends with the connection."""
        if self._status is None:
            return False
        headers = _Headers(self._head)
        return "content-length" not in headers and "transfer-encoding" not in headers

    def _finish(self, *, keep: bool) -> None:
        if self._answer is None or self._status is None:
            return
        answer, self._answer = self._answer, None
        body: bytes | None = self._body[:ANSWER_LIMIT]
        headers = _Headers(self._head)
        if body and b"ncoding:" in self._head.lower():  # rare, and then looked at in earnest
            body = _decoded(body, headers.get("content-encoding", "identity"))
        if body is None:
            self._answer = answer
            self._fail("RESET", "the answer's body cannot be read")
            return
        if not answer.done():
            answer.set_result(Response(self._status, headers, body))
        if keep and self.is_usable:
            self._pool.give_back(self)
        else:
            self._transport.abort()

    def _fail(self, code: str, reason: str) -> None:
        """No answer, or half of one."""
        if self._answer is None:
            return
        if self._status is not None and 200 <= self._status < 300:
            self._body = b""  # FCM has said yes; what is lost is only the message id
            self._finish(keep=False)
            return
        # Half an error body would be misread: a dead token as a wrong project.
        answer, self._answer = self._answer, None
        if not answer.done():
            answer.set_exception(SendFault(code, reason, ambiguous=True))
        self._transport.abort()


class _Headers(Mapping[str, str]):
    """An answer's header fields, taken apart only where somebody asks: a success is not asked."""

    __slots__ = ("_head",)

    def __init__(self, head: bytes) -> None:
        """``head``: what has come of the answer, the head included, and perhaps that of a 1xx before it."""
        self._head = head

    def _read(self) -> dict[str, str]:
        heads = self._head.lstrip(b"\r\n").split(b"\r\n\r\n")
        final = next((head for head in heads if not _INFORMATION.match(head)), b"")
        lines = (line.partition(":") for line in final.decode("latin-1").split("\r\n")[1:])
        return {name.strip().lower(): value.strip() for name, _, value in lines}

    def __getitem__(self, name: str) -> str:
        return self._read()[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


def _decoded(body: bytes, encoding: str) -> bytes | None:
    """A body that was packed although nobody asked for it, as far as ``ANSWER_LIMIT``; None if it cannot be read."""
    if encoding == "identity":
        return body
    unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        unpacked = unpacking.decompress(body, ANSWER_LIMIT)
    except zlib.error:
        return None
    return unpacked if unpacking.eof or len(unpacked) == ANSWER_LIMIT else None


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
