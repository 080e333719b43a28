"""HTTP/2 where the server has it, else HTTP/1.1: by pyreqwest."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from urllib.parse import urlsplit

# pyreqwest reads it when it is loaded. Huge pages would cost 20 MB with a thousand requests in flight and gain nothing.
os.environ.setdefault("MIMALLOC_ALLOW_THP", "0")

from pyreqwest import runtime
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import (
    BodyDecodeError,
    DecodeError,
    DetailedPyreqwestError,
    PyreqwestError,
    RequestTimeoutError,
)
from pyreqwest.http import HeaderMap, Url
from pyreqwest.proxy import ProxyBuilder

from listener.fcm.fault import SendFault
from listener.fcm.transports.base import (
    ANSWER_LIMIT,
    ENCODING,
    KEEPALIVE,
    USER_AGENT,
    Outgoing,
    Response,
    check_timeouts,
)
from listener.fcm.transports.http2_pool import Http2Pool
from listener.fcm.transports.proxy import proxy_for

PING = timedelta(seconds=5)
"""Silence after which an HTTP/2 connection with requests in flight is sent a PING, and the time it has to answer.
Without it a dead connection would be used until TCP gives up, a quarter of an hour later."""

# The library works in threads of its own, the same for the whole process: one for requests, others to resolve names.
_REQUEST_THREADS = 1
_RESOLVER_THREADS = 4

# Bytes of the body that the library reads before it returns the answer. If it read more and the connection broke off,
# the status would be lost with the body.
_FIRST_BYTE = 1


class Http2Transport:
    """Clients that each keep one HTTP/2 connection, or as many of HTTP/1.1 as they need. See ``Transport``.

    Create it inside the running event loop. The library sends a request again only if the server certainly did not
    carry it out: the connection had closed before the request was written, or HTTP/2 says so (REFUSED_STREAM, or a
    GOAWAY that names an earlier request). A cancelled request goes on in the background until its answer or timeout.

    Args:
        url: where to.
        connect_timeout: seconds for DNS, TCP, proxy and TLS together.
        timeout: seconds for the whole request. Source: Firebase, "Scale FCM": at least 10 s.
    """

    def __init__(self, url: str, *, connect_timeout: float = 10.0, timeout: float = 15.0) -> None:
        check_timeouts(connect_timeout, timeout)
        self._url = Url(url)
        self._host = urlsplit(url).hostname or ""
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._proxy: str | None = None
        self._pool: Http2Pool[Client] | None = None
        self._headers: Mapping[str, str] | None = None
        self._header_map = HeaderMap()
        self._closed = False
        runtime.runtime_worker_threads(_REQUEST_THREADS)
        runtime.runtime_max_blocking_threads(_RESOLVER_THREADS)

    async def post(self, headers: Mapping[str, str], outgoing: Outgoing) -> Response:
        """See ``Transport.post``."""
        pool = self._pool or self._open()
        if headers is not self._headers:
            self._header_map, self._headers = HeaderMap({**ENCODING, **headers}), headers
        connection = pool.take() or await pool.acquire(is_high=outgoing.is_high)
        is_open: bool | None = None
        fault: SendFault | None = None
        body = _Body(outgoing.make_body)
        try:
            request = connection.client.post(self._url).headers(self._header_map)
            if outgoing.expires and not connection.is_open:
                # The library would not send it again, and without its length.
                request = request.body_stream(body.chunks())
            else:
                # As text: to release bytes the library would need the interpreter's lock.
                request = request.body_text(outgoing.make_body().decode())
            async with request.streamed_read_buffer_limit(_FIRST_BYTE).build_streamed() as answer:
                is_open = True
                status = answer.status
                try:
                    content = await answer.body_reader.read(ANSWER_LIMIT)
                except PyreqwestError:
                    if not 200 <= status < 300:
                        # Half an error body would be misread: a dead token as a wrong project.
                        raise
                    content = None  # FCM has accepted the message; only the message id is lost.
                return Response(status, answer.headers, b"" if content is None else content.to_bytes())
        except PyreqwestError as exc:
            if body.error is not None:
                raise body.error from None
            fault = self._fault(exc)
            if not fault.ambiguous:
                is_open = False
            raise fault from None
        finally:
            pool.release(connection, is_open=is_open)
            del fault  # It refers to this frame.

    async def close(self) -> None:
        """See ``Transport.close``."""
        self._closed = True
        pool, self._pool = self._pool, None
        for client in pool.clients if pool else ():
            await client.close()

    def _open(self) -> Http2Pool[Client]:
        """Made at the first request, which then has the fault of a proxy that cannot be used."""
        if self._closed:
            raise RuntimeError("the transport is closed")
        self._proxy = proxy_for(str(self._url))
        self._pool = Http2Pool(self._client, keepalive=KEEPALIVE)
        return self._pool

    def _client(self) -> Client:
        builder = (
            ClientBuilder()
            .runtime_multithreaded(True)
            .http2(True)
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PING)
            .connect_timeout(timedelta(seconds=self._connect_timeout))
            .timeout(timedelta(seconds=self._timeout))
            .pool_idle_timeout(timedelta(seconds=KEEPALIVE))
            .follow_redirects(False)
            .user_agent(USER_AGENT)
            .no_proxy()
        )
        if self._proxy is not None:
            builder = builder.proxy(ProxyBuilder.all(self._proxy))
        return builder.build()

    def _fault(self, exc: PyreqwestError) -> SendFault:
        """The fault that an exception stands for. Its causes, not its type, tell whether there was a connection."""
        causes = _causes(exc)
        if "client error (Connect)" in causes:
            return self._not_sent(causes)
        match exc:
            case RequestTimeoutError() if not _OTHER_TIMEOUTS & set(causes):
                return SendFault("TIMEOUT", f"no answer within {self._timeout:g} s", ambiguous=True)
            case BodyDecodeError():
                return SendFault("RESET", "the answer's body cannot be read", ambiguous=True)
            case DecodeError():
                return SendFault("PROTOCOL", "the answer is not HTTP", ambiguous=True)
            case _:
                why = causes[-1] if causes else type(exc).__name__
                return SendFault("RESET", f"the connection was lost ({why})", ambiguous=True)

    def _not_sent(self, causes: list[str]) -> SendFault:
        """The fault of a request that never got a connection."""
        why = causes[-1]
        if why == "operation timed out":
            code, reason = "CONNECT", f"no connection to {self._host} within {self._connect_timeout:g} s"
        elif self._proxy is not None and any(
            cause.startswith(("tunnel error", "tcp connect error")) for cause in causes
        ):
            code, reason = "PROXY", f"no way through the proxy: {why}"
        elif "dns error" in causes:
            code, reason = "DNS", f"cannot resolve {self._host}: {why}"
        elif "(os error " in why or why == "tls handshake eof":
            code, reason = "CONNECT", f"no connection to {self._host}: {why}"
        else:
            code, reason = "TLS", f"no TLS with {self._host}: {why}"
        return SendFault(code, reason, ambiguous=False)


class _Body:
    """The body of a request for which the client opens a connection first. Then the library asks for it."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make = make
        self.error: Exception | None = None
        """What kept it from being made; the library replaces it."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """All of it at once."""
        try:
            whole = self._make()
        except Exception as error:
            self.error = error
            raise
        yield whole


_OTHER_TIMEOUTS = {"client error (SendRequest)", "keep-alive timed out"}
"""With one of these causes a timeout is that of TCP or of the PING, not that of the whole request."""


def _causes(exc: PyreqwestError) -> list[str]:
    """The causes of an exception, the root cause last; without the first line, which quotes the URL."""
    causes = exc.details["causes"] if isinstance(exc, DetailedPyreqwestError) else None
    return [cause["message"] for cause in causes or ()][1:]
