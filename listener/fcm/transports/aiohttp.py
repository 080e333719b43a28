"""HTTP/1.1 by aiohttp."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

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
    Outgoing,
    Response,
    check_timeouts,
)
from listener.fcm.transports.frames import clear_frames
from listener.fcm.transports.lanes import OPENING_FOR_HIGH, OPENING_LIMIT, Lanes
from listener.fcm.transports.proxy import proxy_for


class AiohttpTransport:
    """A pool of keep-alive HTTP/1.1 connections, one for each request in flight. See ``Transport``.

    Create it inside the running event loop. It sends each request at most once: aiohttp resends only idempotent
    methods, and POST is not one.

    Args:
        url: where to.
        connect_timeout: seconds for DNS, TCP, proxy and TLS together.
        timeout: seconds for the whole request. Source: Firebase, "Scale FCM": at least 10 s.
    """

    def __init__(self, url: str, *, connect_timeout: float = 10.0, timeout: float = 15.0) -> None:
        check_timeouts(connect_timeout, timeout)
        self._url = URL(url)
        self._proxy: URL | None = None
        self._knows_proxy = False
        self._timeout = timeout
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=0,
                keepalive_timeout=KEEPALIVE,
                ttl_dns_cache=DNS_TTL,
                # aiohttp makes its own context at import: an SSL_CERT_FILE that is set later has no effect on it.
                # It takes 40 ms to read the authorities, and without TLS nobody needs them.
                ssl=ssl.create_default_context() if self._url.scheme == "https" else True,
            ),
            # aiohttp rounds timeouts above ceil_threshold up to whole seconds, which can make the two equal.
            timeout=aiohttp.ClientTimeout(
                total=timeout, connect=connect_timeout, ceil_threshold=float("inf")
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": USER_AGENT, **ENCODING},
            skip_auto_headers=("Accept",),
        )

    async def post(self, headers: Mapping[str, str], outgoing: Outgoing) -> Response:
        """See ``Transport.post``."""
        if not self._knows_proxy:
            self._learn_proxy()
        try:
            answer = await self._session.post(
                self._url,
                headers=headers,
                data=_Body(outgoing),
                proxy=self._proxy,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError) as exc:
            clear_frames(exc)
            raise self._ambiguous(exc) from None
        status, answer_headers = answer.status, answer.headers
        try:
            content = await _read(answer.content)
        except (aiohttp.ClientError, OSError) as exc:
            clear_frames(exc)
            if not 200 <= status < 300:
                # Half an error body would be misread: a dead token as a wrong project.
                raise self._ambiguous(exc) from None
            content = b""  # FCM has accepted the message; only the message id is lost.
        finally:
            # An answer that was read to its end has released its connection already.
            if not answer.content.at_eof():
                answer.close()
            del answer  # It refers to its fault, which refers to this frame.
        return Response(status, answer_headers, content)

    async def close(self) -> None:
        """See ``Transport.close``."""
        await self._session.close()

    def _learn_proxy(self) -> None:
        """Called at the first request, so that a proxy that cannot be used is a fault of that request.

        aiohttp's own ``trust_env`` reads the environment in a thread, for each request.
        """
        proxy = proxy_for(str(self._url))
        self._proxy = None if proxy is None else URL(proxy)
        self._knows_proxy = True

    def _ambiguous(self, exc: Exception) -> SendFault:
        """The fault of a request that failed after it got a connection.

        Perhaps nothing was written, as on a pooled connection that turned out to be closed: aiohttp does not
        distinguish that from a connection that the server closed after it had read the whole request.
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


class _Body(aiohttp.BytesPayload):
    """Stands for a body until there is a connection."""

    def __init__(self, outgoing: Outgoing) -> None:
        super().__init__(b"")
        self.outgoing = outgoing


class _Connector(aiohttp.TCPConnector):
    """Opens a bounded number of connections at once, and makes the body of a request when the request has a connection.

    Without the bound, a request of high priority would wait for the handshakes of all requests before it. A request
    that finds an idle connection takes it even when the bound is reached.

    It distinguishes failures before there was a connection from failures on a connection.

    The types of aiohttp's exceptions do not: a proxy that hangs up on CONNECT raises the same
    ``ServerDisconnectedError`` as a server that hangs up on the request itself. Until ``connect`` has returned, no byte
    of the request has been written.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._opening = 0
        self._lanes: Lanes[None] = Lanes()

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 (aiohttp's signature)
    ) -> Connection:
        assert isinstance(req.body, _Body)
        outgoing = req.body.outgoing
        try:
            async with asyncio.timeout(timeout.connect):
                if self._conns.get(req.connection_key):
                    connection = await super().connect(req, traces, timeout)
                else:
                    connection = await self._open_in_turn(req, traces, timeout, outgoing.is_high)
        except (aiohttp.ClientError, OSError) as exc:
            clear_frames(exc)
            raise _not_sent(exc, req, timeout) from None
        try:
            await req.update_body(outgoing.make_body())
        except BaseException:
            connection.release()
            raise
        return connection

    async def _open_in_turn(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
        is_high: bool,
    ) -> Connection:
        if self._opening < OPENING_LIMIT + (OPENING_FOR_HIGH if is_high else 0):
            self._opening += 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._lanes.add(turn, is_high=is_high)
            try:
                await turn
            except asyncio.CancelledError:
                if not self._lanes.remove(turn) and not turn.cancelled():
                    self._pass_turn()
                raise
        try:
            return await super().connect(req, traces, timeout)
        finally:
            self._pass_turn()

    def _pass_turn(self) -> None:
        if (turn := self._lanes.next()) is not None:
            turn.set_result(None)
        else:
            self._opening -= 1


def _not_sent(exc: Exception, req: ClientRequest, timeout: aiohttp.ClientTimeout) -> SendFault:
    """The fault of a request that never got a connection."""
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
    """The body of an answer, at most ``ANSWER_LIMIT`` bytes of it."""
    body = await content.read(ANSWER_LIMIT)
    while len(body) < ANSWER_LIMIT and not content.at_eof():
        body += await content.read(ANSWER_LIMIT - len(body))
    return body
