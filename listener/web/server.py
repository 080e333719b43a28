"""/metrics, /healthz and /readyz."""

from __future__ import annotations

import hmac
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from listener.config import Settings

log = structlog.get_logger(__name__)


class Web:
    """The HTTP face of one process.

    ``readiness`` returns what keeps this process from doing its work, in words; empty when nothing does.
    """

    def __init__(
        self, settings: Settings, registry: CollectorRegistry, readiness: Callable[[], list[str]]
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._readiness = readiness

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[int]:
        """Serves inside the block; yields the port. Raises OSError when the port cannot be had."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self._index),
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            host, port = self._settings.host, self._settings.port
            site = (
                web.SockSite(runner, _everywhere(port)) if host is None else web.TCPSite(runner, host, port)
            )
            await site.start()
            port = int(runner.addresses[0][1])
            log.info(
                "web server listening",
                port=port,
                metrics="closed" if self._settings.metrics_closed else "open",
            )
            yield port
        finally:
            await runner.cleanup()

    async def _index(self, request: web.Request) -> web.Response:
        return web.Response(text="push-listener\n\n/metrics\n/healthz\n/readyz\n")

    async def _healthz(self, request: web.Request) -> web.Response:
        """The process lives: it can answer. Says nothing of the database, or a restart would be asked for in vain."""
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        missing = self._readiness()
        return web.Response(status=503 if missing else 200, text="\n".join(missing or ["ok"]) + "\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self._settings.metrics_closed:
            return web.Response(
                status=403,
                text="closed: set METRICS_TOKEN (and send it as a bearer token), or bind to loopback with HOST\n",
            )
        if self._settings.metrics_token is None:
            return None
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        token = self._settings.metrics_token.get_secret_value()
        if scheme.lower() == "bearer" and hmac.compare_digest(_bytes(given.strip()), _bytes(token)):
            return None
        return web.Response(
            status=401, headers={"WWW-Authenticate": "Bearer"}, text="send METRICS_TOKEN as a bearer token\n"
        )


def _bytes(text: str) -> bytes:
    """As it came: what is no UTF-8 stands in headers and in the environment as lone surrogates."""
    return text.encode("utf-8", "surrogateescape")


def _everywhere(port: int) -> socket.socket:
    """A socket on every address of this machine: one for both families, so that port 0 is one port too."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    return socket.create_server(("", port), backlog=128)
