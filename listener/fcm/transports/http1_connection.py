"""One connection of the HTTP/1.1 transport: it writes a request, and httptools parses what comes back."""

from __future__ import annotations

import asyncio
from typing import cast

import httptools

from listener.fcm.fault import SendFault
from listener.fcm.transports.base import ANSWER_LIMIT, KEEPALIVE, Response
from listener.fcm.transports.connection import Head, Owner
from listener.fcm.transports.http1_response import Headers, decoded


class Http1Connection(asyncio.Protocol):
    """One connection, and the request that is in flight on it. See ``Connection``.

    asyncio passes it the bytes that the server sends, and httptools passes it their meaning.

    The parser and the transport refer to the connection, so the connection drops both when it ends. Otherwise the cycle
    would wait for the garbage collector, which runs rarely here (see ``process.tune_garbage_collector``), and a TLS
    connection takes 50 KB.
    """

    __slots__ = (
        "__weakref__",
        "_answer",
        "_body",
        "_deadline",
        "_head",
        "_is_closed",
        "_loop",
        "_owner",
        "_parser",
        "_status",
        "_transport",
        "idle_since",
        "in_use",
    )

    capacity = 1

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self._answer: asyncio.Future[Response] | None = None
        self._deadline = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._is_closed = False
        self.in_use = 0
        self.idle_since = loop.time()
        self._forget_answer()

    def _forget_answer(self) -> None:
        self._status: int | None = None
        self._head = b""
        self._body = b""

    # --- called by the transport and the pool ----------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        """Whether a request may be written, as far as this side knows."""
        return not (self._is_closed or self._transport is None or self._transport.is_closing())

    def send(self, head: Head, body: bytes, deadline: float) -> asyncio.Future[Response]:
        """See ``Connection.send``."""
        assert self._transport is not None
        self._answer = answer = self._loop.create_future()
        self._deadline = deadline
        self._forget_answer()
        self._transport.write(b"%b%d\r\n\r\n%b" % (head.lines, len(body), body))
        return answer

    def abandon(self, answer: asyncio.Future[Response]) -> None:
        """See ``Connection.abandon``."""
        if self._answer is answer:
            self._cut()

    def expire(self, now: float) -> None:
        """See ``Connection.expire``."""
        if self._answer is None:
            if now - self.idle_since >= KEEPALIVE and self._transport is not None:
                self._transport.close()
        elif now >= self._deadline:
            self._fail("TIMEOUT", f"no answer within {self._owner.request_timeout:g} s")

    def abort(self) -> None:
        """See ``Connection.abort``."""
        self._is_closed = True  # also if it is not open yet
        self._fail("RESET", "the connections are being closed")
        self._cut()

    def _cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- called by asyncio -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            asyncio.Transport, transport
        )  # uvloop's class derives from nothing of asyncio's.
        if self._is_closed:  # Nobody waits for it any more.
            self._cut()
            return
        self._parser = httptools.HttpResponseParser(self)
        self._owner.add(self)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self._cut()  # Without a request nobody can tell what the next answer would belong to.
            return
        if self._parser is None:
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
        had_eof, self._is_closed = self._is_closed, True
        self._owner.discard(self)
        if self._answer is not None and had_eof and exc is None and self._body_ends_with_connection():
            self._finish(keep=False)
        else:
            how = "closed" if exc is None else "lost"
            self._fail("RESET", f"the connection was {how} before the end of the answer")
        self._parser = self._transport = None

    # --- called by httptools ---------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._answer is None:
            self._cut()  # A second answer to one request.

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body
        if len(self._body) >= ANSWER_LIMIT:
            self._finish(keep=False)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._status is not None and 100 <= self._status < 200:
            self._status = None  # The answer itself comes after a 1xx.
        else:
            self._finish(keep=self._parser.should_keep_alive())

    # --- the end of a request --------------------------------------------------------------------------

    def _body_ends_with_connection(self) -> bool:
        if self._status is None:
            return False
        headers = Headers(self._head)
        return "content-length" not in headers and "transfer-encoding" not in headers

    def _finish(self, *, keep: bool) -> None:
        """The answer is complete, or as complete as it will be. ``keep``: the server keeps the connection open."""
        if self._answer is None or self._status is None:
            return
        headers = Headers(self._head)
        body: bytes | None = self._body[:ANSWER_LIMIT]
        if (
            body and b"ncoding:" in self._head.lower()
        ):  # Cheap, and rarely true: only then are headers parsed.
            body = decoded(body, headers.get("content-encoding", "identity"))
        if body is None:
            self._fail("RESET", "the answer's body cannot be read")
            return
        answer, self._answer = self._answer, None
        if not answer.done():
            answer.set_result(Response(self._status, headers, body))
        if keep and self.is_usable:
            self._owner.release(self)
        else:
            self._cut()

    def _fail(self, code: str, reason: str) -> None:
        """There is no answer, or only a part of one."""
        if self._answer is None:
            return
        if self._status is not None and 200 <= self._status < 300:
            self._body = b""  # FCM has accepted the message; only the message id is lost.
            self._finish(keep=False)
            return
        # Half an error body would be misread: a dead token as a wrong project.
        answer, self._answer = self._answer, None
        if not answer.done():
            answer.set_exception(SendFault(code, reason, ambiguous=True))
        self._cut()
