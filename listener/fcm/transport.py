"""The wire: one POST, one answer, or a fault that says whether the request can have gone out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ssl import SSLContext
from typing import Protocol
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from listener.fcm.fault import SendFault

ANSWER_LIMIT = 64 * 1024
"""Bytes of an answer that are read; FCM's are below 2 KiB. The rest is thrown away with its connection."""

KEEPALIVE = 60.0
"""Seconds an idle connection is kept. Below what NATs and Google's front ends allow, so that we are
the side that closes: a request written onto a connection the server is closing is an ambiguous reset."""

DNS_TTL = 30
"""Seconds a resolved address is used for new connections."""


@dataclass(slots=True, frozen=True)
class Response:
    """An HTTP answer. ``headers`` is case-insensitive; ``body`` is cut at ``ANSWER_LIMIT``."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Carries requests to FCM."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Send one POST, at most once, and return the answer whatever its status.

        Raises:
            SendFault: there is no (whole) answer; ``ambiguous`` tells whether the request may have
                been carried out all the same.
        """
        ...

    async def close(self) -> None:
        """Close all connections. Requests still in flight fail."""
        ...


class AiohttpTransport:
    """A pool of keep-alive HTTP/1.1 connections. Create it inside the running event loop.

    A request is never repeated here: aiohttp resends only idempotent methods, and a POST is not one.

    Args:
        max_in_flight: the most requests, and so connections, at one time.
        connect_timeout: seconds for a free place in the pool, DNS, TCP, proxy and TLS together.
        timeout: seconds for the whole request. Source: Firebase, "Scale FCM": at least 10 s.
        ssl_context: what to trust; None is the system's certificate authorities.

    Proxies come from the environment (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, in either case),
    read once for each URL: aiohttp's own ``trust_env`` asks for them in a thread for each request.
    """

    def __init__(
        self,
        *,
        max_in_flight: int,
        connect_timeout: float = 10.0,
        timeout: float = 15.0,
        ssl_context: SSLContext | None = None,
    ) -> None:
        if connect_timeout >= timeout:
            # A timeout of the whole request while still connecting could not be told from a later one.
            raise ValueError("connect_timeout must be shorter than timeout")
        self._timeout = timeout
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=max_in_flight,
                keepalive_timeout=KEEPALIVE,
                ttl_dns_cache=DNS_TTL,
                ssl=True if ssl_context is None else ssl_context,
            ),
            # From ceil_threshold on aiohttp rounds timeouts up to whole seconds, which may make two equal.
            timeout=aiohttp.ClientTimeout(
                total=timeout, connect=connect_timeout, ceil_threshold=float("inf")
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Answers are a few hundred bytes: compressing them costs more than it saves.
            headers={"User-Agent": "push-listener", "Accept-Encoding": "identity"},
            skip_auto_headers=("Accept",),
        )
        self._routes: dict[str, tuple[URL, URL | None]] = {}

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Response:
        """See ``Transport.post``."""
        route = self._routes.get(url)
        if route is None:
            target = URL(url)
            route = self._routes[url] = target, _proxy_for(target)
        try:
            answer = await self._session.post(
                route[0], headers=headers, data=body, proxy=route[1], allow_redirects=False
            )
        except (aiohttp.ClientError, OSError) as exc:
            raise self._unknown(exc) from None
        try:
            content = await _read(answer.content)
        except (aiohttp.ClientError, OSError) as exc:
            if not 200 <= answer.status < 300:
                # Half an error body would be misread: a dead token as a wrong project.
                raise self._unknown(exc) from None
            content = b""  # FCM has said yes; what is lost is only the message id.
        finally:
            # Read to its end, the answer has given its connection back by itself.
            if not answer.content.at_eof():
                answer.close()
        return Response(answer.status, answer.headers, content)

    async def close(self) -> None:
        """See ``Transport.close``."""
        await self._session.close()

    def _unknown(self, exc: Exception) -> SendFault:
        """The fault for a request that failed after it was given a connection.

        Also where nothing was written yet, as on a pooled connection found closed: aiohttp does not
        tell that from a connection closed after the server had read it all.
        """
        match exc:
            case TimeoutError():
                return SendFault("TIMEOUT", f"no answer within {self._timeout:g} s", ambiguous=True)
            case aiohttp.ClientResponseError():
                # Its text quotes what the server sent.
                return SendFault("PROTOCOL", "the answer is not HTTP", ambiguous=True)
            case aiohttp.ClientPayloadError():
                return SendFault("RESET", "the answer's body broke off or cannot be read", ambiguous=True)
            case aiohttp.ClientConnectionError() | OSError():
                return SendFault("RESET", f"the connection was lost ({type(exc).__name__})", ambiguous=True)
            case _:
                return SendFault("PROTOCOL", type(exc).__name__, ambiguous=True)


class _Connector(aiohttp.TCPConnector):
    """Tells what failed before there was a connection from what failed on one.

    The types of aiohttp's exceptions do not: a proxy that hangs up on CONNECT raises the same
    ``ServerDisconnectedError`` as a server that hangs up on the request itself. As long as ``connect``
    has not returned, not a byte of the request has been written.
    """

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 (aiohttp's signature)
    ) -> Connection:
        try:
            return await super().connect(req, traces, timeout)
        except (aiohttp.ClientError, OSError) as exc:
            raise _not_sent(exc, req, timeout) from None


def _not_sent(exc: Exception, req: ClientRequest, timeout: aiohttp.ClientTimeout) -> SendFault:
    """The fault for a request that never got a connection."""
    match exc:
        case TimeoutError():
            code, reason = "CONNECT", f"no connection to {req.host} within {timeout.connect:g} s"
        case aiohttp.ClientConnectorDNSError():
            code, reason = "DNS", f"cannot resolve {exc.host}: {exc.strerror}"
        case aiohttp.ClientSSLError() | aiohttp.ServerFingerprintMismatch():
            code, reason = "TLS", str(exc)
        case aiohttp.ClientHttpProxyError():
            code, reason = "PROXY", f"the proxy answered {exc.status} to CONNECT"
        case aiohttp.ClientProxyConnectionError():
            code, reason = "PROXY", f"cannot reach the proxy: {exc.strerror}"
        case aiohttp.ClientConnectorError():
            code, reason = "CONNECT", str(exc)
        case _ if req.proxy is not None:
            code, reason = "PROXY", f"the proxy broke off CONNECT ({type(exc).__name__})"
        case _:
            code, reason = "CONNECT", f"no connection to {req.host} ({type(exc).__name__})"
    return SendFault(code, reason, ambiguous=False)


def _proxy_for(url: URL) -> URL | None:
    """The proxy that the environment names for a URL, with its credentials.

    Raises:
        SendFault: it is of a kind that cannot be used (SOCKS).
    """
    host = url.host
    if host is None or proxy_bypass(f"{host}:{url.port}"):
        return None
    proxies = getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    if not named:
        return None
    proxy = URL(named if "://" in named else f"http://{named}")
    if proxy.scheme not in ("http", "https"):
        raise SendFault(
            "PROXY", f"a {proxy.scheme} proxy cannot be used, only http or https", ambiguous=False
        )
    return proxy


async def _read(content: aiohttp.StreamReader) -> bytes:
    """The body of an answer, as far as ``ANSWER_LIMIT``."""
    body = await content.read(ANSWER_LIMIT)
    while len(body) < ANSWER_LIMIT and not content.at_eof():
        body += await content.read(ANSWER_LIMIT - len(body))
    return body
