"""The doorbell: a LISTEN connection of its own, that wakes the dispatcher, proves itself, and heals itself.

A ring carries nothing and may be lost: after every (re)connection the dispatcher is woken as if it had rung. The same
connection holds the worker's liveness lock, so that peers notice at once when this process is gone, and while it is
awake the lock that silences the bell (see awake.py), which thus lasts no longer than the other.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from typing import LiteralString

import psycopg
import structlog
import tenacity
from psycopg import AsyncConnection, Notify, sql

from listener.log import should_log
from listener.metrics import Metrics
from listener.postgres import errors
from listener.postgres.connect import Connection, with_keepalive
from listener.postgres.errors import fault_name
from listener.postgres.locks import CHANNEL, LIVENESS_CLASS

log = structlog.get_logger(__name__)

_PROOF_TIMEOUT_S = 5.0
_LOCK_PATIENCE_S = 5.0

# What cuts one worker's connection often cuts all of them, and by then every one of them is back.
_STEADY_AFTER_S = 5.0

# A database that is read-only, as while it fails over, is away too; that is an InternalError.
_AWAY = (psycopg.OperationalError, psycopg.InternalError, TimeoutError)

# The same on the server's side, where the lock is held: by default it takes two hours to notice that a host is gone.
_KEEPALIVE = """
select pg_catalog.set_config('tcp_keepalives_idle', '5', false),
       pg_catalog.set_config('tcp_keepalives_interval', '2', false),
       pg_catalog.set_config('tcp_keepalives_count', '3', false),
       pg_catalog.set_config('tcp_user_timeout', '10000', false)
"""
_LOCK = "select pg_catalog.pg_try_advisory_lock(%s, %s)"
_EVICT = """
select pid, pg_catalog.pg_terminate_backend(pid)
  from pg_catalog.pg_locks
  where locktype = 'advisory' and classid = %s::oid and objid = %s::oid and objsubid = 2 and granted
    and database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
    and pid is distinct from pg_catalog.pg_backend_pid()
"""
_HOLDER = """
select pid, role, prepared from push_listener.lock_holders
  where lock = 'liveness' and key = %s and granted and pid is distinct from pg_catalog.pg_backend_pid()
"""
_STARTED_AT = "select started_at from push_listener.workers where id = %s"
_GUARDED = "update push_listener.workers set guarded = true, lost = false, stopped_at = null where id = %s"
_SERVER_AGE = """
select extract(epoch from pg_catalog.clock_timestamp() - pg_catalog.pg_postmaster_start_time())::float8
"""


class IdentityLost(Exception):
    """This worker cannot go on under its id. ``facts`` say more, for the log.

    Args:
        reason: why.
        is_own: whether the row in ``push_listener.workers`` is still this worker's.
    """

    def __init__(self, reason: str, *, is_own: bool, **facts: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_own = is_own
        self.facts = facts


def _cannot_connect(state: tenacity.RetryCallState) -> None:
    if should_log(state.attempt_number):
        error = state.outcome.exception() if state.outcome else None
        log.warning(
            "doorbell cannot connect",
            error=fault_name(error),
            reason=errors.explain(error),
            tries=state.attempt_number,
        )


class Doorbell:
    """Listens on ``push_listener`` and calls ``on_ring`` at every ring and after every (re)connection.

    Args:
        dsn: a direct connection, or a pooler in session mode.
        worker_id: whose liveness lock to hold.
        heartbeat: seconds of silence after which the connection has to prove itself.
        on_doubt: called when the bell may have been silenced: a peer has said so, or might have while this worker could
            not hear it.
        on_lost: called once, when somebody else has this worker's liveness lock or its row; ``run`` then returns.
    """

    def __init__(
        self,
        dsn: str,
        worker_id: int,
        on_ring: Callable[[], None],
        metrics: Metrics,
        *,
        heartbeat: float,
        on_doubt: Callable[[], None] = lambda: None,
        on_lost: Callable[[IdentityLost], None] = lambda lost: None,
    ) -> None:
        self._dsn = with_keepalive(dsn)
        self._worker = worker_id
        self._own_channel = f"{CHANNEL}_{worker_id}"
        self._on_ring = on_ring
        self._on_doubt = on_doubt
        self._on_lost = on_lost
        self._row: tuple[object, ...] | None = None  # when this worker was registered, as its row says
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._healthy = asyncio.Event()
        self._proven = False
        self._conn: Connection | None = None
        self._hearing: asyncio.Timeout | None = None
        self._fault: BaseException | None = None  # it leaves the state of the connection unknown
        self._steady_from = math.inf
        self._rng = random.Random()  # noqa: S311  # jitter, not secrecy

    @property
    def connected(self) -> bool:
        """Whether LISTEN and the liveness lock are in force now."""
        return self._healthy.is_set()

    @property
    def steady(self) -> bool:
        """Whether that has been so for a while, if anything has ever cut it; or else the server has run for a while."""
        return self.connected and time.monotonic() >= self._steady_from

    async def wait_connected(self) -> None:
        """Returns once LISTEN and the liveness lock are in force."""
        await self._healthy.wait()

    async def ask(self, statement: LiteralString, *values: object) -> tuple[object, ...]:
        """The row that a statement returns, asked on the connection that listens.

        Raises psycopg.Error or TimeoutError, also when there is no connection. Whatever the statement may have done
        to the session is then undone: the connection is replaced.
        """
        conn = self._conn
        if conn is None:
            raise psycopg.OperationalError("not listening")
        self._stop_hearing()
        try:
            async with asyncio.timeout(_PROOF_TIMEOUT_S):
                row = await (await conn.execute(statement, values)).fetchone()
        except BaseException as error:
            if self._conn is conn:
                self._fault = error
                self._stop_hearing()
            raise
        assert row is not None
        return row

    async def run(self) -> None:
        """Listens until cancelled; connects again, with jittered backoff, whenever the connection is lost.

        Returns when this worker cannot go on under its id.
        """
        while True:
            try:
                async with await self._connect() as conn:
                    await self._listen(conn)
            except _AWAY as error:
                log.warning("doorbell lost", error=fault_name(error))
            except IdentityLost as lost:
                self._on_lost(lost)
                return
            finally:
                self._conn = None
                self._healthy.clear()
                self._metrics.listening.set(0)

    async def _listen(self, conn: Connection) -> None:
        loop = asyncio.get_running_loop()
        self._healthy.set()
        self._metrics.listening.set(1)
        log.info("doorbell connected", backend=conn.info.backend_pid)
        self._conn, self._fault = conn, None
        self._on_doubt()
        self._on_ring()
        while True:
            proof_due = loop.time() + self._heartbeat * self._rng.uniform(0.9, 1.1)
            while loop.time() < proof_due:
                await self._hear(conn, proof_due - loop.time())
                self._raise_fault()
            await self._prove(conn)
            self._raise_fault()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise psycopg.OperationalError("a statement failed") from self._fault

    async def _hear(self, conn: Connection, seconds: float) -> None:
        """Hears rings for so long, or until somebody asks for the connection.

        A ring is taken from the socket and told without a pause between, so none is lost where this is cut off.
        """
        try:
            async with asyncio.timeout(seconds) as self._hearing:
                async for notify in conn.notifies():
                    self._heard(notify)
        except TimeoutError:
            pass
        finally:
            self._hearing = None

    def _stop_hearing(self) -> None:
        if self._hearing is not None and not self._hearing.expired():
            self._hearing.reschedule(asyncio.get_running_loop().time())

    def _heard(self, notify: Notify) -> None:
        if notify.channel == self._own_channel:
            self._proven = True
        elif notify.payload != str(self._worker):
            self._metrics.rings.inc()
            if notify.payload:  # the worker that is awake now
                self._on_doubt()
            self._on_ring()

    async def _prove(self, conn: Connection) -> None:
        """A round trip through LISTEN. Raises TimeoutError when the connection says nothing any more."""
        self._proven = False
        async with asyncio.timeout(_PROOF_TIMEOUT_S):
            await conn.execute("select pg_catalog.pg_notify(%s, '')", (self._own_channel,))
            while not self._proven:
                async for notify in conn.notifies(timeout=_PROOF_TIMEOUT_S, stop_after=1):
                    self._heard(notify)

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(_AWAY),
        wait=tenacity.wait_random_exponential(multiplier=0.25, max=3),
        before_sleep=_cannot_connect,
    )
    async def _connect(self) -> Connection:
        conn = await AsyncConnection.connect(
            self._dsn, autocommit=True, application_name="push-listener doorbell"
        )
        try:
            async with asyncio.timeout(_PROOF_TIMEOUT_S + _LOCK_PATIENCE_S):
                for channel in (CHANNEL, self._own_channel):
                    await conn.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
                await conn.execute(_KEEPALIVE)
                await self._check_row(conn)  # before the lock, which another worker of the same id may hold
                await self._take_lock(conn)
                await conn.execute(_GUARDED, (self._worker,))
                await self._settle_in(conn)
                await self._prove(conn)
        except BaseException:
            await conn.close()
            raise
        return conn

    async def _settle_in(self, conn: Connection) -> None:
        steady_in = _STEADY_AFTER_S
        if self._steady_from == math.inf:  # the first connection: has the server been away just before?
            row = await (await conn.execute(_SERVER_AGE)).fetchone()
            steady_in -= float(str(row[0])) if row else 0.0
        self._steady_from = time.monotonic() + steady_in

    async def _check_row(self, conn: Connection) -> None:
        """Raises IdentityLost if this worker's row has gone since the first connection, or is another worker's."""
        row = await (await conn.execute(_STARTED_AT, (self._worker,))).fetchone()
        if self._row is None:
            self._row = row
        elif row != self._row:
            raise IdentityLost("its row in push_listener.workers is not its own any more", is_own=False)

    async def _take_lock(self, conn: Connection) -> None:
        """The liveness lock; what still holds it is this worker's former connection, gone silent.

        Raises IdentityLost if it is anybody else, who cannot be evicted.
        """
        key = (LIVENESS_CLASS, self._worker)
        try:
            async for attempt in tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type(psycopg.errors.LockNotAvailable),
                stop=tenacity.stop_after_delay(_LOCK_PATIENCE_S),
                wait=tenacity.wait_fixed(0.1),
                reraise=True,
            ):
                with attempt:
                    row = await (await conn.execute(_LOCK, key)).fetchone()
                    if not row or not row[0]:
                        # Not at the first try: a peer may have been about to bury this worker.
                        if attempt.retry_state.attempt_number > 1 and not await self._evict(conn):
                            raise await self._taken(conn)
                        raise psycopg.errors.LockNotAvailable(
                            "the liveness lock is held by another connection"
                        )
        except psycopg.errors.LockNotAvailable:
            raise await self._taken(conn) from None

    async def _evict(self, conn: Connection) -> bool:
        """Terminates the sessions that hold the lock; False if it may not, or if a prepared transaction holds it."""
        try:
            cursor = await conn.execute(_EVICT, (LIVENESS_CLASS, self._worker))
            return all(pid is not None for pid, _ in await cursor.fetchall())
        except psycopg.errors.InsufficientPrivilege:
            return False

    async def _taken(self, conn: Connection) -> IdentityLost:
        holder = await (await conn.execute(_HOLDER, (self._worker,))).fetchone()
        pid, role, prepared = holder or (None, None, None)
        return IdentityLost(
            "its liveness lock is held by somebody else", is_own=True, pid=pid, role=role, prepared=prepared
        )
