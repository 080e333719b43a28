"""FCM over pyreqwest: HTTP/2 where the server has it, else HTTP/1.1."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

# Read when pyreqwest is loaded. Huge pages would cost 20 MB with a thousand requests in flight, and gain nothing.
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
    Response,
    check_timeouts,
    proxy_for,
)
from listener.fcm.transports.lanes import Lanes

PING = timedelta(seconds=5)
"""Silence on an HTTP/2 connection that owes answers, after which it has to prove itself; and the time it has for
that. Otherwise one that is dead would be used until TCP gives up, a quarter of an hour later."""

# The library works in threads of its own, the same for the whole process: one, and some for names to be resolved.
_WORKING = 1
_RESOLVING = 4

# What is read of a body before the answer is handed over: as much as has come with its head. If more were, and that
# broke off, the status would be lost with it.
_FIRST_BYTE = 1


@dataclass(slots=True, frozen=True)
class _Route:
    url: Url
    host: str
    proxied: bool
    lanes: Lanes[Client]


class ReqwestTransport:
    """Clients that each keep one HTTP/2 connection, or as many of HTTP/1.1 as they need. See ``Transport``.

    Create it inside the running event loop. The library sends a request again by itself only where it certainly was
    not carried out: the connection had closed before it was written, or HTTP/2 says so (REFUSED_STREAM, or GOAWAY
    naming an earlier one). A cancelled request is abandoned: in the background it goes on until its answer or its
    timeout.

    Args:
        connect_timeout: seconds for DNS, TCP, proxy and TLS together.
        timeout: seconds for the whole request. Source: Firebase, "Scale FCM": at least 10 s.
    """

    def __init__(self, *, connect_timeout: float = 10.0, timeout: float = 15.0) -> None:
        check_timeouts(connect_timeout, timeout)
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._routes: dict[str, _Route] = {}
        self._headers: Mapping[str, str] | None = None
        self._header_map = HeaderMap()
        self._closed = False
        runtime.runtime_worker_threads(_WORKING)
        runtime.runtime_max_blocking_threads(_RESOLVING)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Response:
        """See ``Transport.post``."""
        route = self._routes.get(url) or self._route_to(url)
        if headers is not self._headers:
            self._header_map, self._headers = HeaderMap({**ENCODING, **headers}), headers
        lane = route.lanes.take() or await route.lanes.wait()
        connected: bool | None = None
        try:
            # As text: to let go of bytes the library needs the interpreter's lock.
            request = lane.client.post(route.url).headers(self._header_map).body_text(body.decode())
            async with request.streamed_read_buffer_limit(_FIRST_BYTE).build_streamed() as answer:
                connected = True
                status = answer.status
                try:
                    content = await answer.body_reader.read(ANSWER_LIMIT)
                except PyreqwestError:
                    if not 200 <= status < 300:
                        # Half an error body would be misread: a dead token as a wrong project.
                        raise
                    content = None  # FCM has said yes; what is lost is only the message id.
                return Response(status, answer.headers, b"" if content is None else content.to_bytes())
        except PyreqwestError as exc:
            fault = self._fault(exc, route)
            if not fault.ambiguous:
                connected = False
            raise fault from None
        finally:
            route.lanes.done(lane, connected=connected)

    async def close(self) -> None:
        """See ``Transport.close``."""
        self._closed = True
        for route in self._routes.values():
            for client in route.lanes.clients:
                await client.close()
        self._routes.clear()

    def _route_to(self, url: str) -> _Route:
        if self._closed:
            raise RuntimeError("ReqwestTransport is closed")
        proxy = proxy_for(url)
        lanes = Lanes(lambda: self._client(proxy), keep=KEEPALIVE)
        route = _Route(Url(url), urlsplit(url).hostname or "", proxy is not None, lanes)
        self._routes[url] = route
        return route

    def _client(self, proxy: str | None) -> Client:
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
        if proxy is not None:
            builder = builder.proxy(ProxyBuilder.all(proxy))
        return builder.build()

    def _fault(self, exc: PyreqwestError, route: _Route) -> SendFault:
        """What an exception means. Its type does not tell whether there was a connection; its causes do."""
        causes = _causes(exc)
        if "client error (Connect)" in causes:
            return self._not_sent(causes, route)
        match exc:
            case RequestTimeoutError() if not _NOT_OURS & set(causes):
                return SendFault("TIMEOUT", f"no answer within {self._timeout:g} s", ambiguous=True)
            case BodyDecodeError():
                return SendFault("RESET", "the answer's body cannot be read", ambiguous=True)
            case DecodeError():
                return SendFault("PROTOCOL", "the answer is not HTTP", ambiguous=True)
            case _:
                why = causes[-1] if causes else type(exc).__name__
                return SendFault("RESET", f"the connection was lost ({why})", ambiguous=True)

    def _not_sent(self, causes: list[str], route: _Route) -> SendFault:
        """The fault for a request that never got a connection."""
        why = causes[-1]
        if why == "operation timed out":
            code, reason = "CONNECT", f"no connection to {route.host} within {self._connect_timeout:g} s"
        elif route.proxied and any(
            cause.startswith(("tunnel error", "tcp connect error")) for cause in causes
        ):
            code, reason = "PROXY", f"no way through the proxy: {why}"
        elif "dns error" in causes:
            code, reason = "DNS", f"cannot resolve {route.host}: {why}"
        elif "(os error " in why or why == "tls handshake eof":
            code, reason = "CONNECT", f"no connection to {route.host}: {why}"
        else:
            code, reason = "TLS", f"no TLS with {route.host}: {why}"
        return SendFault(code, reason, ambiguous=False)


_NOT_OURS = {"client error (SendRequest)", "keep-alive timed out"}
"""A timeout with one of these is TCP's or the ping's, not that of the whole request."""


def _causes(exc: PyreqwestError) -> list[str]:
    """What led to an exception, the first cause last; without the line at the top, which quotes the URL."""
    causes = exc.details["causes"] if isinstance(exc, DetailedPyreqwestError) else None
    return [cause["message"] for cause in causes or ()][1:]
