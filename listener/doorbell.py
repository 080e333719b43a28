"""The doorbell: a LISTEN connection of its own, that wakes the dispatcher, proves itself, and heals itself.

A ring carries nothing and may be lost: after every (re)connection the dispatcher is woken as if it had rung. The same
connection holds the worker's liveness lock, so that peers notice at once when this process is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

import psycopg
import structlog
import tenacity
from psycopg import AsyncConnection, Notify, sql

from listener.database import Connection, with_keepalive
from listener.metrics import Metrics
from listener.queue import CHANNEL, LIVENESS_CLASS

log = structlog.get_logger(__name__)

_PROOF_TIMEOUT_S = 5.0
_LOCK_PATIENCE_S = 5.0

_LOCK = "select pg_try_advisory_lock(%s, %s)"
_EVICT = """
select pg_terminate_backend(pid)
  from pg_locks
  where locktype = 'advisory' and classid = %s and objid = %s and objsubid = 2 and granted
    and database = (select oid from pg_database where datname = current_database())
    and pid <> pg_backend_pid()
"""
_GUARDED = "update push_listener.workers set guarded = true, lost = false, stopped_at = null where id = %s"


class TransactionPooler(Exception):
    """The address leads to a pooler in transaction mode, where LISTEN cannot work."""

    def __str__(self) -> str:
        return (
            "LISTEN cannot work through this address: it is a pooler in transaction mode (on Supabase: port 6543). "
            "Set LISTEN_DATABASE_URL to the direct connection (db.<ref>.supabase.co, port 5432) or to the pooler in "
            "session mode (port 5432); DATABASE_URL may stay as it is. Or set DOORBELL=sweep to look at the queue "
            "every few seconds instead: slower, and without the lock that lets others take over a dead worker's rows "
            "at once"
        )


class Doorbell:
    """Listens on ``push_listener`` and calls ``on_ring`` at every ring and after every (re)connection.

    Args:
        dsn: a direct connection, or a pooler in session mode.
        worker_id: whose liveness lock to hold.
        heartbeat: seconds of silence after which the connection has to prove itself.
    """

    def __init__(
        self, dsn: str, worker_id: int, on_ring: Callable[[], None], metrics: Metrics, *, heartbeat: float
    ) -> None:
        self._dsn = with_keepalive(dsn)
        self._worker = worker_id
        self._own_channel = f"{CHANNEL}_{worker_id}"
        self._on_ring = on_ring
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._healthy = asyncio.Event()
        self._proven = False
        self._rng = random.Random()  # noqa: S311  # jitter, not secrecy

    @property
    def connected(self) -> bool:
        """Whether LISTEN and the liveness lock are in force now."""
        return self._healthy.is_set()

    async def wait_connected(self) -> None:
        """Returns once LISTEN and the liveness lock are in force."""
        await self._healthy.wait()

    async def run(self) -> None:
        """Listens until cancelled; connects again, with jittered backoff, whenever the connection is lost.

        Raises TransactionPooler when the address is found to be one.
        """
        await self._refuse_transaction_pooler()
        while True:
            try:
                async with await self._connect() as conn:
                    await self._listen(conn)
            except (psycopg.OperationalError, TimeoutError) as error:
                log.warning(
                    "doorbell lost", error=type(error).__name__, sqlstate=getattr(error, "sqlstate", None)
                )
            finally:
                self._healthy.clear()
                self._metrics.listening.set(0)

    async def _listen(self, conn: Connection) -> None:
        self._healthy.set()
        self._metrics.listening.set(1)
        log.info("doorbell connected", backend=conn.info.backend_pid)
        self._on_ring()
        while True:
            async for notify in conn.notifies(timeout=self._heartbeat * self._rng.uniform(0.9, 1.1)):
                self._heard(notify)
            await self._prove(conn)

    def _heard(self, notify: Notify) -> None:
        if notify.channel == self._own_channel:
            self._proven = True
        else:
            self._metrics.rings.inc()
            self._on_ring()

    async def _prove(self, conn: Connection) -> None:
        """A round trip through LISTEN. Raises TimeoutError when the connection says nothing any more."""
        self._proven = False
        async with asyncio.timeout(_PROOF_TIMEOUT_S):
            await conn.execute("select pg_notify(%s, '')", (self._own_channel,))
            while not self._proven:
                async for notify in conn.notifies(timeout=_PROOF_TIMEOUT_S, stop_after=1):
                    self._heard(notify)

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type((psycopg.OperationalError, TimeoutError)),
        wait=tenacity.wait_random_exponential(multiplier=0.25, max=3),
        before_sleep=lambda state: log.warning(
            "doorbell cannot connect",
            attempt=state.attempt_number,
            retry_in_s=round(state.upcoming_sleep, 1),
        ),
    )
    async def _connect(self) -> Connection:
        conn = await AsyncConnection.connect(
            self._dsn, autocommit=True, application_name="push-listener doorbell"
        )
        try:
            async with asyncio.timeout(_PROOF_TIMEOUT_S + _LOCK_PATIENCE_S):
                for channel in (CHANNEL, self._own_channel):
                    await conn.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
                await self._take_lock(conn)
                await conn.execute(_GUARDED, (self._worker,))
        except BaseException:
            await conn.close()
            raise
        return conn

    async def _take_lock(self, conn: Connection) -> None:
        """The liveness lock; what still holds it is this worker's former connection, gone silent."""
        key = (LIVENESS_CLASS, self._worker)
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(psycopg.errors.LockNotAvailable),
            stop=tenacity.stop_after_delay(_LOCK_PATIENCE_S),
            wait=tenacity.wait_fixed(0.1),
            reraise=True,
        ):
            with attempt:
                row = await (await conn.execute(_LOCK, key)).fetchone()
                if not row or not row[0]:
                    await conn.execute(_EVICT, key)
                    raise psycopg.errors.LockNotAvailable("the liveness lock is held by another connection")

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(psycopg.OperationalError),
        wait=tenacity.wait_random_exponential(multiplier=0.25, max=3),
    )
    async def _refuse_transaction_pooler(self) -> None:
        """Two connections that are served by one backend, or one that is served by two, give a pooler away."""
        async with contextlib.AsyncExitStack() as stack:
            first, second = [
                await stack.enter_async_context(
                    await AsyncConnection.connect(self._dsn, prepare_threshold=None)
                )
                for _ in range(2)
            ]
            before = await _backend(first)
            await first.commit()
            other = await _backend(second)  # in a transaction, so that a pooler cannot give it away again
            if before == other or before != await _backend(first):
                raise TransactionPooler


async def _backend(conn: Connection) -> int:
    row = await (await conn.execute("select pg_backend_pid()")).fetchone()
    assert row is not None
    return int(str(row[0]))
