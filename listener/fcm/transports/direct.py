"""HTTP/2 and HTTP/1.1 straight on asyncio: what our POST needs and no more. docs/transports.md says why."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

from listener.fcm.fault import SendFault
from listener.fcm.transports.base import ENCODING, USER_AGENT, Outgoing, Response, check_timeouts
from listener.fcm.transports.connection import Head, NotTaken
from listener.fcm.transports.pool import Pool

_TRIES = 20
"""Connections, at most, on which a request is tried one after another, while the server says that it did not carry it
out. There may be many: connections that were opened together reach the age limit of the server together."""


class DirectTransport:
    """HTTP/2 where the server has it, else HTTP/1.1 with a connection for each request in flight. See ``Transport``.

    Create it inside the running event loop. It sends a request again only if the server has said that it did not carry
    it out: REFUSED_STREAM, or a GOAWAY that names an earlier request. It knows no proxies: where there is one,
    ``make_transport`` chooses another transport.

    Args:
        url: where to.
        http2: whether HTTP/2 is offered to the server. Without TLS it is HTTP/1.1 always.
        connect_timeout: seconds that a request waits for a connection: for one to become free, or for DNS, TCP and
            TLS together.
        timeout: seconds for the whole request. Source: Firebase, "Scale FCM": at least 10 s.
    """

    def __init__(
        self, url: str, *, http2: bool = True, connect_timeout: float = 10.0, timeout: float = 15.0
    ) -> None:
        check_timeouts(connect_timeout, timeout)
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        self._timeout = timeout
        self._now = asyncio.get_running_loop().time
        self._pool = Pool(
            parts.hostname or "",
            parts.port or (443 if tls else 80),
            tls=_tls_context(http2=http2) if tls else None,
            http2=tls and http2,
            connect_timeout=connect_timeout,
            request_timeout=timeout,
        )
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        self._host = host if parts.port in (None, 443 if tls else 80) else f"{host}:{parts.port}"
        self._head = Head(b"", [])
        self._head_of: Mapping[str, str] | None = None
        self._closed = False

    async def post(self, headers: Mapping[str, str], outgoing: Outgoing) -> Response:
        """See ``Transport.post``."""
        if self._closed:
            raise RuntimeError("the transport is closed")
        if headers is not self._head_of:
            self._head, self._head_of = _head(self._path, self._host, headers), headers
        head = self._head
        deadline = self._now() + self._timeout
        body: bytes | None = None
        for _ in range(_TRIES):
            connection = self._pool.take() or await self._pool.acquire(deadline, is_high=outgoing.is_high)
            if body is None:
                try:
                    body = outgoing.make_body()
                except BaseException:
                    self._pool.release(connection)
                    raise
            answer = connection.send(head, body, deadline)
            try:
                return await answer
            except NotTaken:
                pass
            except asyncio.CancelledError:
                connection.abandon(answer)
                raise
            finally:
                # The answer refers to its fault, and the fault to this frame: a cycle that would keep the connection.
                del answer, connection
        raise SendFault("RESET", "the server has refused the request each time", ambiguous=False)

    async def close(self) -> None:
        """See ``Transport.close``."""
        self._closed = True
        await self._pool.close()


def _head(path: str, host: str, headers: Mapping[str, str]) -> Head:
    """The head of a request. Made once for each access token."""
    given = {"User-Agent": USER_AGENT, **ENCODING, **headers}
    for name, value in given.items():
        if "\r" in value or "\n" in value:
            raise ValueError(f"the header {name} has more than one line")
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in given.items())]
    fields = {":authority": host, ":path": path, **{name.lower(): value for name, value in given.items()}}
    return Head(
        "\r\n".join([*lines, "Content-Length: "]).encode("latin-1"),
        [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()],
    )


def _tls_context(*, http2: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    return context
