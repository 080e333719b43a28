"""FCM over aiohttp: HTTP/1.1."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import aiohttp
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from listener.fcm.fault import SendFault
from listener.fcm.transports.base import (
    ANSWER_LIMIT,
    DNS_TTL,
    ENCODING,
    KEEPALIVE,
    USER_AGENT,
    Response,
    check_timeouts,
    proxy_for,
)


class AiohttpTransport:
    """A pool of keep-alive HTTP/1.1 connections, one for each request in flight. See ``Transport``.

    Create it inside the running event loop. A request is never repeated here: aiohttp resends only
    idempotent methods, and a POST is not one.

    Args:
        connect_timeout: seconds for DNS, TCP, proxy and TLS together.
        timeout: seconds for the whole request. Source: Firebase, "Scale FCM": at least 10 s.
    """

    def __init__(self, *, connect_timeout: float = 10.0, timeout: float = 15.0) -> None:
        check_timeouts(connect_timeout, timeout)
        self._timeout = timeout
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=0,
                keepalive_timeout=KEEPALIVE,
                ttl_dns_cache=DNS_TTL,
                # aiohttp's own is made when it is imported: SSL_CERT_FILE would count for nothing after that.
                ssl=ssl.create_default_context(),
            ),
            # From ceil_threshold on aiohttp rounds timeouts up to whole seconds, which may make two equal.
            timeout=aiohttp.ClientTimeout(
                total=timeout, connect=connect_timeout, ceil_threshold=float("inf")
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": USER_AGENT, **ENCODING},
            skip_auto_headers=("Accept",),
        )
        self._routes: dict[str, tuple[URL, URL | None]] = {}

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Response:
        """See ``Transport.post``."""
        route = self._routes.get(url)
        if route is None:
            proxy = proxy_for(url)  # aiohttp's own trust_env asks in a thread, for each request
            route = self._routes[url] = URL(url), None if proxy is None else URL(proxy)
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
        case aiohttp.ClientConnectorDNSError() if req.proxy is not None and exc.host != req.host:
            code, reason = "PROXY", f"cannot resolve the name of the proxy: {exc.strerror}"
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


async def _read(content: aiohttp.StreamReader) -> bytes:
    """The body of an answer, as far as ``ANSWER_LIMIT``."""
    body = await content.read(ANSWER_LIMIT)
    while len(body) < ANSWER_LIMIT and not content.at_eof():
        body += await content.read(ANSWER_LIMIT - len(body))
    return body
