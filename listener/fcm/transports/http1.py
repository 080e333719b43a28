"""HTTP/1.1 straight on asyncio: what our POST needs and no more. docs/transports.md says why."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from listener.fcm.transports.base import ENCODING, USER_AGENT, Outgoing, Response, check_timeouts
from listener.fcm.transports.http1_pool import Http1Pool


class Http1Transport:
    """Keep-alive HTTP/1.1 connections, as many as there are requests in flight. See ``Transport``.

    Create it inside the running event loop. It sends each request at most once. It knows no proxies: where there is
    one, ``make_transport`` chooses another transport.

    Args:
        url: where to.
        connect_timeout: seconds that a request waits for a connection: for one to become free, or for DNS, TCP and
            TLS together.
        timeout: seconds for the whole request. Source: Firebase, "Scale FCM": at least 10 s.
    """

    def __init__(self, url: str, *, connect_timeout: float = 10.0, timeout: float = 15.0) -> None:
        check_timeouts(connect_timeout, timeout)
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        self._timeout = timeout
        self._now = asyncio.get_running_loop().time
        self._pool = Http1Pool(
            parts.hostname or "",
            port,
            tls=_tls_context() if tls else None,
            connect_timeout=connect_timeout,
            request_timeout=timeout,
        )
        self._first_lines = _first_lines(parts)
        self._head = b""
        self._head_of: Mapping[str, str] | None = None
        self._closed = False

    async def post(self, headers: Mapping[str, str], outgoing: Outgoing) -> Response:
        """See ``Transport.post``."""
        if self._closed:
            raise RuntimeError("the transport is closed")
        if headers is not self._head_of:
            self._head, self._head_of = _head(self._first_lines, headers), headers
        head = self._head
        deadline = self._now() + self._timeout
        connection = self._pool.take_idle() or await self._pool.acquire(deadline, is_high=outgoing.is_high)
        try:
            body = outgoing.make_body()
        except BaseException:
            self._pool.release(connection)
            raise
        answer = connection.send(head, body, deadline)
        try:
            return await answer
        except asyncio.CancelledError:
            connection.abandon(answer)
            raise
        finally:
            # A fault refers to this frame, and the answer to the fault: a circle, that would keep the connection.
            del answer, connection

    async def close(self) -> None:
        """See ``Transport.close``."""
        self._closed = True
        await self._pool.close()


def _first_lines(url: SplitResult) -> list[str]:
    """The lines of a request that depend on the URL only."""
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    host = url.hostname or ""
    host = f"[{host}]" if ":" in host else host
    if url.port not in (None, 443 if url.scheme == "https" else 80):
        host += f":{url.port}"
    return [f"POST {path} HTTP/1.1", f"Host: {host}", f"User-Agent: {USER_AGENT}"]


def _head(first_lines: list[str], headers: Mapping[str, str]) -> bytes:
    """The head of a request, as far as the length of its body. Made once for each access token."""
    lines = list(first_lines)
    for name, value in {**ENCODING, **headers}.items():
        if "\r" in value or "\n" in value:
            raise ValueError(f"the header {name} has more than one line")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
