"""The doorbell: a LISTEN connection of its own, that wakes the dispatcher and heals itself.

A ring carries nothing and may be lost: after every (re)connection the dispatcher is woken as if it had rung.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import psycopg
import structlog
import tenacity
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from listener.metrics import Metrics
from listener.queue import CHANNEL

log = structlog.get_logger(__name__)

# A peer that is gone without a word is noticed by the kernel. Source: PostgreSQL, libpq connection parameters.
_KEEPALIVE = (
    "keepalives=1 keepalives_idle=15 keepalives_interval=5 keepalives_count=3 "
    "tcp_user_timeout=30000 connect_timeout=10"
)


class Doorbell:
    """Listens on ``push_listener`` and calls ``on_ring`` at every ring and after every (re)connection."""

    def __init__(self, dsn: str, on_ring: Callable[[], None], metrics: Metrics) -> None:
        self._dsn = dsn
        self._on_ring = on_ring
        self._metrics = metrics
        self._healthy = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether LISTEN is in force now."""
        return self._healthy.is_set()

    async def wait_connected(self) -> None:
        """Returns once LISTEN is in force."""
        await self._healthy.wait()

    async def run(self) -> None:
        """Listens until cancelled; connects again, with jittered backoff, whenever the connection is lost."""
        while True:
            try:
                await self._connect_and_listen()
            except psycopg.OperationalError as error:
                log.warning("doorbell lost", error=type(error).__name__, sqlstate=error.sqlstate)
            finally:
                self._healthy.clear()
                self._metrics.listening.set(0)

    async def _connect_and_listen(self) -> None:
        conn = await self._connect()
        async with contextlib.aclosing(conn.notifies()) as rings, conn:
            self._healthy.set()
            self._metrics.listening.set(1)
            log.info("doorbell connected", backend=conn.info.backend_pid)
            self._on_ring()
            async for _ in rings:
                self._metrics.rings.inc()
                self._on_ring()
        raise psycopg.OperationalError("the connection was closed")

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(psycopg.OperationalError),
        wait=tenacity.wait_random_exponential(multiplier=0.25, max=5),
        before_sleep=lambda state: log.warning(
            "doorbell cannot connect", attempt=state.attempt_number, retry_in_s=round(state.upcoming_sleep, 1)
        ),
    )
    async def _connect(self) -> psycopg.AsyncConnection[tuple[object, ...]]:
        conn = await psycopg.AsyncConnection.connect(
            make_conninfo(_KEEPALIVE, **conninfo_to_dict(self._dsn)),
            autocommit=True,
            application_name="push-listener doorbell",
        )
        try:
            await conn.execute(sql.SQL("listen {}").format(sql.Identifier(CHANNEL)))
        except BaseException:
            await conn.close()
            raise
        return conn
