"""The doorbell: a LISTEN connection that checks itself, and that is replaced when it does not work.

A notification carries no data and may be lost, so every (re)connection counts as a notification. The same connection
holds the worker's liveness lock, so that peers notice at once when this process is gone. While the worker polls (see
busy_polling.py) it also holds the polling lock, so that both locks end together.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import LiteralString
from uuid import UUID

import psycopg
import structlog
import tenacity
from psycopg import Notify, sql
from psycopg.rows import class_row

from listener.log import should_log
from listener.metrics.own import Metrics
from listener.postgres import errors
from listener.postgres.connect import Address, Connection, ServicePool, fetch_value, prepare_session
from listener.postgres.errors import Condition, fault_name
from listener.postgres.locks import CHANNEL, LIVENESS_CLASS
from listener.wakeup.identity import IdentityLost

log = structlog.get_logger(__name__)

_LOCK_PATIENCE_S = 5.0

STEADY_AFTER_S = 5.0
"""By then every other worker whose connection was cut at the same time has connected again."""

# Any error: a database that fails over is read-only for a while, and a revoked privilege may be granted again.
_AWAY = (psycopg.Error, TimeoutError)

_BETWEEN_PROOFS_WHILE_FULL_S = 1.0

# The server holds the lock until it notices that this host is gone, which takes it two hours by default.
_KEEPALIVE = """
select pg_catalog.set_config('tcp_keepalives_idle', '5', false),
       pg_catalog.set_config('tcp_keepalives_interval', '2', false),
       pg_catalog.set_config('tcp_keepalives_count', '3', false),
       pg_catalog.set_config('tcp_user_timeout', '10000', false)
"""
_LOCK = "select pg_catalog.pg_try_advisory_lock(%s, %s)"
_BACKEND = """
select pid, extract(epoch from backend_start)::text
  from pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())
"""
_HOLDERS = """
select h.pid, h.role, h.prepared, h.is_ours,
       (h.pid, extract(epoch from a.backend_start)::text) in (
         select * from unnest(%(pids)s::integer[], %(started)s::text[])) as is_former
  from push_listener.lock_holders h
  left join lateral pg_catalog.pg_stat_get_activity(coalesce(h.pid, 0)) a on true
  where h.lock = 'liveness' and h.key = %(worker)s and h.granted and h.pid is distinct from pg_catalog.pg_backend_pid()
"""
_EVICT = "select pg_catalog.pg_terminate_backend(%s)"
_IS_OWN = """
select incarnation = %(incarnation)s::uuid from push_listener.workers where id = %(worker)s
"""
_GUARDED = """
update push_listener.workers set guarded = true, lost = false, stopped_at = null
  where id = %(worker)s and incarnation = %(incarnation)s::uuid
"""
# The function also drops from the queue what every session has read.
_SHORTEN_QUEUE = "select pg_catalog.pg_notification_queue_usage()"
# Postgres shows nobody which sessions listen and how far they have read. Without pg_read_all_stats it does not show the
# transactions of other roles either.
_OLDEST_TRANSACTION = """
select pid, usename::text, datname::text, state,
       pg_catalog.round(extract(epoch from pg_catalog.clock_timestamp() - xact_start))::float8
  from pg_catalog.pg_stat_activity
  where backend_type = 'client backend' and pid <> pg_catalog.pg_backend_pid() and xact_start is not null
  order by xact_start
  limit 1
"""
_SERVER_AGE = """
select extract(epoch from pg_catalog.clock_timestamp() - pg_catalog.pg_postmaster_start_time())::float8
"""


class Topic(Enum):
    """What a doorbell tells its subscribers."""

    NOTIFIED = "something may have been inserted"
    RECHECK = "inserts may not have notified, because a peer polls, or may have polled unheard"


class Doorbell:
    """Listens on the channel ``push_listener`` and tells its subscribers.

    Args:
        address: leads to the server itself, or to a pooler in session mode.
        worker_id: whose liveness lock to hold.
        heartbeat: seconds of silence after which the connection has to prove itself.
        incarnation: of the worker, as its row in ``push_listener.workers`` says; None if it has no row.
        pool: leaves a connection to the doorbell if there are few: without the doorbell nothing may be claimed.
        proof_timeout: seconds after which a connection that does not answer is given up.
        steady_after: seconds after which the other workers, too, must have their connections again.
    """

    def __init__(
        self,
        address: Address,
        worker_id: int,
        metrics: Metrics,
        *,
        heartbeat: float,
        incarnation: UUID | None = None,
        pool: ServicePool | None = None,
        proof_timeout: float = 5.0,
        steady_after: float = STEADY_AFTER_S,
    ) -> None:
        self._proof_timeout = proof_timeout
        self._steady_after = steady_after
        self._address = address
        self._worker = worker_id
        self._key = {"worker": worker_id, "incarnation": incarnation}
        self._own_channel = f"{CHANNEL}_{worker_id}"
        self._subscribers: dict[Topic, list[Callable[[], None]]] = {topic: [] for topic in Topic}
        self._pool = pool
        # The backends that have served this doorbell: process id, and when it started. One of them may live on.
        self._former: deque[tuple[int, str]] = deque(maxlen=16)
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._healthy = asyncio.Event()
        self._proven = False
        self._conn: Connection | None = None
        self._receiving: asyncio.Timeout | None = None
        self._fault: BaseException | None = (
            None  # of a statement; since then the state of the connection is unknown
        )
        self.queue_is_full = False
        """Whether the server takes no notification, so that inserts that notify fail."""
        self._times_full = 0
        self.connections = 0
        """How often LISTEN and the liveness lock have come into force."""
        self.condition: Condition | None = None
        """Why the last try to connect failed, while there is no connection."""
        self._steady_from = math.inf
        self._rng = random.Random()  # noqa: S311  # jitter, not secrecy

    def subscribe(self, topic: Topic, function: Callable[[], None]) -> None:
        """Calls ``function`` whenever the topic has news, also after every (re)connection."""
        self._subscribers[topic].append(function)

    def _tell(self, topic: Topic) -> None:
        for function in self._subscribers[topic]:
            function()

    @property
    def connected(self) -> bool:
        """Whether LISTEN and the liveness lock are in force now."""
        return self._healthy.is_set()

    @property
    def steady(self) -> bool:
        """Whether the connection has stood for some seconds, or the server was up long before the first connection.

        An event that cuts the connection of one worker often cuts the connections of all. Therefore the silence of a
        peer says nothing soon after a cut.
        """
        return self.connected and time.monotonic() >= self._steady_from

    def replace(self) -> None:
        """Gives up the connection, and connects again."""
        self._fault = psycopg.OperationalError("the connection leads to another server")
        self._stop_receiving()

    async def wait_connected(self) -> None:
        """Returns once LISTEN and the liveness lock are in force."""
        await self._healthy.wait()

    async def fetchone(self, statement: LiteralString, *values: object) -> tuple[object, ...]:
        """Runs a statement on the connection that listens; returns its row.

        Raises psycopg.Error or TimeoutError, also when there is no connection. The connection is then replaced, which
        undoes what the statement may have done to the session.
        """
        conn = self._conn
        if conn is None:
            raise psycopg.OperationalError("not listening")
        self._stop_receiving()
        try:
            async with asyncio.timeout(self._proof_timeout):
                row = await (await conn.execute(statement, values)).fetchone()
        except BaseException as error:
            if self._conn is conn:
                self._fault = error
                self._stop_receiving()
            raise
        assert row is not None
        return row

    async def run(self) -> IdentityLost:
        """Listens until cancelled, or until another session has this worker's liveness lock or its row.

        Connects again, with jittered backoff, whenever the connection is lost.
        """
        while True:
            try:
                async with await self._connect() as conn:
                    await self._listen(conn)
            except _AWAY as error:
                log.warning("doorbell lost", error=fault_name(error))
            except IdentityLost as lost:
                return lost
            finally:
                self._conn = None
                self._healthy.clear()
                self._metrics.listening.set(0)

    async def _listen(self, conn: Connection) -> None:
        loop = asyncio.get_running_loop()
        self._healthy.set()
        self.condition = None
        self.connections += 1
        if self._pool is not None:
            self._pool.grow()
        self._metrics.listening.set(1)
        self._metrics.connections.inc()
        log.info("doorbell connected", backend=conn.info.backend_pid)
        self._conn, self._fault = conn, None
        self._tell(Topic.RECHECK)
        self._tell(Topic.NOTIFIED)
        while True:
            silence = _BETWEEN_PROOFS_WHILE_FULL_S if self.queue_is_full else self._heartbeat
            proof_due = loop.time() + silence * self._rng.uniform(0.9, 1.1)
            while loop.time() < proof_due:
                await self._receive(conn, proof_due - loop.time())
                self._raise_fault()
            await self._prove(conn)
            self._raise_fault()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise psycopg.OperationalError("a statement failed") from self._fault

    async def _receive(self, conn: Connection, seconds: float) -> None:
        """Receives notifications for ``seconds``, or until a statement is to run on the connection.

        Nothing is awaited between the socket and the subscribers, so the timeout loses no notification.
        """
        try:
            async with asyncio.timeout(seconds) as self._receiving:
                async for notify in conn.notifies():
                    self._received(notify)
        except TimeoutError:
            pass
        finally:
            self._receiving = None

    def _stop_receiving(self) -> None:
        if self._receiving is not None and not self._receiving.expired():
            self._receiving.reschedule(asyncio.get_running_loop().time())

    def _received(self, notify: Notify) -> None:
        if notify.channel == self._own_channel:
            self._proven = True
        elif notify.payload != str(self._worker):
            self._metrics.notifications.inc()
            self._metrics.last_notification.set_to_current_time()
            if notify.payload:  # the id of the worker that polls now
                self._tell(Topic.RECHECK)
            self._tell(Topic.NOTIFIED)

    async def _prove(self, conn: Connection) -> None:
        """Makes a round trip through LISTEN. Raises TimeoutError when no answer comes.

        While the NOTIFY queue of the server is full, nothing can be proven, and nothing has to be: no insert notifies.
        """
        try:
            try:
                await self._notify_itself(conn)
            except psycopg.errors.ProgramLimitExceeded:
                # Otherwise only a session that notifies shortens the queue, and no session can notify now.
                await conn.execute(_SHORTEN_QUEUE)
                await self._notify_itself(conn)
        except psycopg.errors.ProgramLimitExceeded:
            await self._note_full(conn)
        else:
            if self.queue_is_full:
                log.info("the NOTIFY queue of the server has room again")
            self.queue_is_full, self._times_full = False, 0

    async def _notify_itself(self, conn: Connection) -> None:
        self._proven = False
        async with asyncio.timeout(self._proof_timeout):
            await conn.execute("select pg_catalog.pg_notify(%s, '')", (self._own_channel,))
            while not self._proven:
                async for notify in conn.notifies(timeout=self._proof_timeout, stop_after=1):
                    self._received(notify)

    async def _note_full(self, conn: Connection) -> None:
        self.queue_is_full = True
        self._times_full += 1
        if should_log(self._times_full):
            row = await (await conn.execute(_OLDEST_TRANSACTION)).fetchone()
            facts = zip(("pid", "role", "database", "state", "transaction_s"), row or (), strict=False)
            log.warning(
                "the NOTIFY queue of the server is full: a session that listens does not end its transaction",
                remedy="end the oldest transaction: select pg_terminate_backend(pid)",
                **dict(facts),
            )
        self._tell(Topic.RECHECK)
        self._tell(Topic.NOTIFIED)

    async def _connect(self) -> Connection:
        """A connection on which LISTEN and the liveness lock are in force; tries until it has one."""
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_AWAY),
            wait=tenacity.wait_random_exponential(multiplier=0.25, max=3),
            before_sleep=self._cannot_connect,
        ):
            with attempt:
                return await self._try_to_connect()
        raise AssertionError("unreachable")

    async def _try_to_connect(self) -> Connection:
        await self._address.until_worth_a_try()
        conn = await self._address.connect("push-listener doorbell")
        try:
            async with asyncio.timeout(self._proof_timeout + _LOCK_PATIENCE_S):
                await prepare_session(conn)
                for channel in (CHANNEL, self._own_channel):
                    await conn.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
                await conn.execute(_KEEPALIVE)
                await self._check_row(conn)  # before the lock, which another worker of the same id may hold
                await self._take_lock(conn)
                await conn.execute(_GUARDED, self._key)
                await self._note_steady(conn)
                await self._prove(conn)
        except BaseException:
            await conn.close()
            raise
        return conn

    async def _cannot_connect(self, state: tenacity.RetryCallState) -> None:
        """Called after each try that has failed."""
        error, tries = state.outcome.exception() if state.outcome else None, state.attempt_number
        self._metrics.progress.set_to_current_time()
        self.condition = errors.condition(error)
        if should_log(tries):
            log.warning(
                "doorbell cannot connect",
                error=fault_name(error),
                reason=errors.explain(error),
                tries=tries,
            )
        # A pooler in session mode that has no connection left does not refuse a client: it makes the client wait.
        if self._pool is not None and self.condition in (Condition.FULL, Condition.NO_ANSWER):
            await self._pool.shrink()

    async def _note_steady(self, conn: Connection) -> None:
        steady_in = self._steady_after
        if self._steady_from == math.inf:  # the first connection: perhaps the server has just come back
            row = await (await conn.execute(_SERVER_AGE)).fetchone()
            steady_in -= float(str(row[0])) if row else 0.0
        self._steady_from = time.monotonic() + steady_in

    async def _check_row(self, conn: Connection) -> None:
        """Raises IdentityLost if this worker's row has gone, or is another worker's."""
        if self._key["incarnation"] is not None and not await fetch_value(conn, _IS_OWN, self._key):
            raise IdentityLost("its row in push_listener.workers is not its own any more", is_own=False)

    async def _take_lock(self, conn: Connection) -> None:
        """Takes the liveness lock, and evicts this worker's former connection if it still holds the lock.

        Raises IdentityLost if another session holds it.
        """
        backend = await (await conn.execute(_BACKEND)).fetchone()
        assert backend is not None
        self._former.append((backend[0], backend[1]))
        try:
            async for attempt in tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type(psycopg.errors.LockNotAvailable),
                stop=tenacity.stop_after_delay(_LOCK_PATIENCE_S),
                wait=tenacity.wait_fixed(0.1),
                reraise=True,
            ):
                with attempt:
                    if not await fetch_value(conn, _LOCK, (LIVENESS_CLASS, self._worker)):
                        # Not at the first try: a peer that checks whether this worker is dead holds it for an instant.
                        if attempt.retry_state.attempt_number > 1:
                            await self._evict(conn)
                        raise psycopg.errors.LockNotAvailable(
                            "the liveness lock is held by another connection"
                        )
        except psycopg.errors.LockNotAvailable:
            raise _taken(await self._holders(conn)) from None

    async def _evict(self, conn: Connection) -> None:
        """Terminates the former sessions of this doorbell. Raises IdentityLost if the lock cannot become free soon.

        Before the first connection, no peer checks whether this worker is dead. So if a worker holds the lock then, the
        database has forgotten that worker, as after a restore, and has given its id a second time.
        """
        holders = await self._holders(conn)
        is_first = len(self._former) == 1
        if any(is_first or not holder.is_ours for holder in holders):
            raise _taken(holders)
        for holder in holders:
            if holder.is_former:
                await conn.execute(_EVICT, (holder.pid,))

    async def _holders(self, conn: Connection) -> list[_Holder]:
        pids, started = zip(*self._former, strict=True) if self._former else ((), ())
        cursor = conn.cursor(row_factory=class_row(_Holder))
        await cursor.execute(_HOLDERS, {"worker": self._worker, "pids": list(pids), "started": list(started)})
        return await cursor.fetchall()


@dataclass(frozen=True, slots=True)
class _Holder:
    """A session that holds this worker's liveness lock; a row of _HOLDERS."""

    pid: int | None
    role: str | None
    prepared: str | None
    is_ours: bool
    is_former: bool | None


def _taken(holders: list[_Holder]) -> IdentityLost:
    reason = "another session holds its liveness lock"
    if not holders:
        return IdentityLost(reason, is_own=True)
    first = holders[0]
    return IdentityLost(reason, is_own=True, pid=first.pid, role=first.role, prepared=first.prepared)
