"""The web server of a process: the page, /metrics, /healthz and /readyz; and /metrics alone on a private port."""

from __future__ import annotations

import errno
import hmac
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from listener.config import Settings
from listener.web.page.app import Page
from listener.web.page.headers import secure

log = structlog.get_logger(__name__)

# The time for answers that are under way when the process ends.
_LEAVING_S = 2.0


class PortTaken(Exception):
    """The process cannot listen on a port; the text names the settings of that port."""


class Web:
    """Serves the metrics and the health of one process.

    Args:
        settings: where to listen, and who may read /metrics.
        registry: the metrics.
        obstacles: returns what keeps this process from doing its work, one phrase each. Everyone can read them.
        page: the operator's page; None: no page is served.
    """

    def __init__(
        self,
        settings: Settings,
        registry: CollectorRegistry,
        obstacles: Callable[[], list[str]],
        page: Page | None = None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._obstacles = obstacles
        self._page = page
        self.metrics_port: int | None = None
        """The port for METRICS_PORT, as soon as the server listens on it."""

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[int]:
        """Serves while the block runs; yields the public port.

        Raises PortTaken if it cannot listen on a port.
        """
        settings = self._settings
        async with AsyncExitStack() as stack:
            public = [
                *([] if self._page is None else self._page.routes),
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
            port = await stack.enter_async_context(
                _listening(public, settings.host, settings.port, "HOST, PORT")
            )
            log.info(
                "web server listening",
                port=port,
                metrics="closed" if settings.metrics_closed else "open",
                page="none" if self._page is None else self._page.access,
            )
            if settings.metrics_port is not None:
                private = [web.get("/metrics", self._metrics_in_private)]
                where = settings.metrics_host, settings.metrics_port, "METRICS_HOST, METRICS_PORT"
                self.metrics_port = await stack.enter_async_context(_listening(private, *where))
                log.info("metrics server listening", port=self.metrics_port)
            yield port

    async def _healthz(self, request: web.Request) -> web.Response:
        """Answers as long as the process runs, even without a database, because a restart would not help then."""
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        obstacles = self._obstacles()
        return web.Response(status=503 if obstacles else 200, text="\n".join(obstacles or ["ok"]) + "\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        refusal = self._refuse(request)
        return await self._metrics_in_private(request) if refusal is None else refusal

    async def _metrics_in_private(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})

    def _refuse(self, request: web.Request) -> web.Response | None:
        """The refusal of a request that may not read the metrics; None if it may."""
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


@asynccontextmanager
async def _listening(
    routes: Sequence[web.RouteDef], host: str | None, port: int, variables: str
) -> AsyncIterator[int]:
    """Serves these routes while the block runs; yields the port. ``variables``: the settings of host and port."""
    app = web.Application()
    app.add_routes(routes)
    app.on_response_prepare.append(secure)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_LEAVING_S)
    await runner.setup()
    try:
        try:
            site = (
                web.SockSite(runner, _bind_every_address(port))
                if host is None
                else web.TCPSite(runner, host, port)
            )
            await site.start()
        except OSError as error:
            reason = (
                "another program listens on it; end that program, or choose another port"
                if error.errno == errno.EADDRINUSE
                else error.strerror
            )
            raise PortTaken(f"{variables}: cannot listen on port {port}: {reason}") from None
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _bytes(text: str) -> bytes:
    """The bytes of a header or an environment variable; Python decodes invalid UTF-8 in both to lone surrogates."""
    return text.encode("utf-8", "surrogateescape")


def _bind_every_address(port: int) -> socket.socket:
    """One socket for all IPv4 and IPv6 addresses. With two sockets, port 0 would become two different ports."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    return socket.create_server(("", port), backlog=128)
