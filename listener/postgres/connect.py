"""Makes connections to Postgres."""

from __future__ import annotations

import asyncio
import math
import os
import random
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Self
from weakref import WeakSet

import psycopg
from psycopg import AsyncConnection
from psycopg.abc import Params, QueryNoTemplate
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import ConnectionTimeout
from psycopg.rows import scalar_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from listener.backoff import Backoff
from listener.postgres.errors import Condition, condition, spoils_session

Connection = AsyncConnection[tuple[Any, ...]]
Pool = AsyncConnectionPool[Connection]

# The kernel notices within some ten seconds that the other side has vanished, on an idle connection as well as on one
# that waits for an answer. Source: PostgreSQL, libpq connection parameters.
_KEEPALIVE = (
    "keepalives=1 keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000 "
    "connect_timeout=5"
)

STATEMENT_PATIENCE_S = 30.0
"""Seconds to wait for the answer to a statement: a network may acknowledge every packet and still drop it."""

_CONFIGURE_PATIENCE_S = 5.0
_LOGIN_PATIENCE_S = 15.0

# A pool that could not open another connection works with those it has for this long.
_BETWEEN_TRIES_TO_GROW_S = (10.0, 20.0)

_PROBES = 24
_PROBE_PATIENCE_S = 15.0
# Random, so that the probes do not keep step with other clients and meet the same free backend each time.
_BETWEEN_PROBES_S = 0.01

# A pooler in session mode that resets nothing hands over a session with the locks and the prepared statements of its
# former client, under names that psycopg uses again.
_CLEAN = "deallocate all; unlisten *; select pg_catalog.pg_advisory_unlock_all()"
# Overrides the settings of the role, the database or the server. Under a stricter isolation concurrent claims fail, and
# these connections are meant to be idle. Postgres overestimates the cost of some of our statements and would compile
# them, which takes longer than to execute them.
_SETTINGS = """
select pg_catalog.set_config('default_transaction_isolation', 'read committed', false),
       pg_catalog.set_config('idle_session_timeout', '0', false),
       pg_catalog.set_config('jit', 'off', false)
"""

# An index serves each statement of the service, but Postgres prefers to read the whole table while it is small, and a
# session keeps such a plan when the table has grown. Postgres may also plan a claim each time, which takes as long
# as the claim itself and is of no use, because the plan need not depend on the values.
PLANNING = """
select pg_catalog.set_config('enable_seqscan', 'off', false),
       pg_catalog.set_config('plan_cache_mode', 'force_generic_plan', false)
"""
"""Additional settings for the sessions of ``ServicePool``."""

_SMALL_BYTES = 64 * 1024
"""While the table is smaller than twice this, no plan is bad enough to be replaced."""

_LOOKS_FOR_LOCK = 20
_BETWEEN_LOOKS_S = 0.1
_HOLD = "select pg_catalog.pg_advisory_lock(%(high)s::integer, %(low)s::integer)"
_LET_GO = "select pg_catalog.pg_advisory_unlock(%(high)s::integer, %(low)s::integer)"
_IS_HELD = """
select exists (
  select from pg_catalog.pg_locks
    where locktype = 'advisory' and classid = %(high)s::oid and objid = %(low)s::oid and objsubid = 2 and granted
      and database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database()))
"""

_BACKEND = "select pg_catalog.pg_backend_pid()"


ENCODING = "utf8"
"""For ``client_encoding`` of each connection. By default it is the server's, and with SQL_ASCII psycopg returns bytes
in place of text. It is sent when a connection starts, because a pooler in transaction mode keeps that and loses SET."""


class Address:
    """Where Postgres is, and why it does not let this process in.

    If the server refuses the login for a reason that does not pass by itself, such as a wrong password, this process
    tries again only seldom: a platform may ban a machine that goes on trying.

    Args:
        dsn: the address.
        refused_least: seconds, at least, before a refused login is tried again.
        refused_first: seconds, at most, before the first such try.
        refused_longest: seconds, at most, before any such try.
    """

    def __init__(
        self,
        dsn: str,
        *,
        refused_least: float = 4.0,
        refused_first: float = 8.0,
        refused_longest: float = 60.0,
    ) -> None:
        self.dsn = with_defaults(dsn)
        self.condition: Condition | None = None
        """Why the last login failed; None after one that succeeded."""
        self._refusal = ""
        self._backoff = Backoff(refused_first, refused_longest, least=refused_least)
        self._try_at = -math.inf

    @contextmanager
    def login(self) -> Iterator[None]:
        """Connect within this block. Raises psycopg.OperationalError without a try if it is too early for one.

        The error says why the last try was refused.
        """
        self.raise_if_too_early()
        if self._refusal:
            self._try_at = time.monotonic() + _LOGIN_PATIENCE_S  # one try at a time
        try:
            yield
        except (psycopg.Error, TimeoutError) as error:
            self.condition = condition(error)
            if self.condition.is_lasting:
                self._refusal = str(error)
                self._try_at = time.monotonic() + self._backoff.failed()
            else:
                self._allow()
            raise
        except BaseException:
            self._try_at = -math.inf
            raise
        else:
            self.condition = None
            self._allow()

    @property
    def is_too_early(self) -> bool:
        """Whether a login is not to be tried now."""
        return time.monotonic() < self._try_at

    def raise_if_too_early(self) -> None:
        """Raises psycopg.OperationalError if a login is not to be tried now."""
        if self.is_too_early:
            raise psycopg.OperationalError(self._refusal)

    async def until_worth_a_try(self) -> None:
        """Returns when a login may be tried."""
        await asyncio.sleep(self._try_at - time.monotonic())

    async def connect(self, application_name: str, *, prepares: bool = True) -> Connection:
        """A connection in autocommit. Raises psycopg.OperationalError."""
        with self.login():
            return await AsyncConnection.connect(
                self.dsn,
                autocommit=True,
                application_name=application_name,
                prepare_threshold=5 if prepares else None,
            )

    def _allow(self) -> None:
        self._refusal, self._try_at = "", -math.inf
        self._backoff.succeeded()


def with_defaults(dsn: str) -> str:
    """The address, with our encoding, and with settings that notice a dead network.

    A setting for the network in the address itself takes precedence.

    Of several hosts one may be a standby, so the address leads to the first server that can be written to. A single
    host is not checked, because PgBouncer goes on telling its clients what the server was when PgBouncer first
    connected to it.
    """
    given = conninfo_to_dict(dsn)
    if "," in str(given.get("host") or given.get("hostaddr") or os.environ.get("PGHOST", "")):
        given = {"target_session_attrs": os.environ.get("PGTARGETSESSIONATTRS", "read-write"), **given}
    return make_conninfo(_KEEPALIVE, **{**given, "client_encoding": ENCODING})


def note_size(conn: Connection, size: int) -> None:
    """Notes the size of ``push_notifications``, in bytes, which a statement of this connection has read.

    A session of the service's pool makes new plans before its next use if the table has doubled since it did so last.
    """
    if isinstance(conn, _Pooled):
        conn.pool.note_size(size)


async def prepare_session(conn: Connection) -> None:
    """Puts a new session into the state that the service relies on. Raises psycopg.Error.

    Do not use it behind a transaction pooler, where a connection is no session.
    """
    await conn.execute(_CLEAN, prepare=False)
    await conn.execute(_SETTINGS)


class ServicePool(Pool):
    """The connections for all statements but LISTEN. Autocommit: every statement is a transaction of its own.

    It holds one connection, and up to four while statements run at the same time. A connection is replaced when an
    error says that its session cannot serve any more, or that its server is no primary.

    Args:
        address: where to connect.
        prepares: whether prepared statements may be used. A transaction pooler loses them, and settings too.
        patience: seconds within which a caller gets a connection, and the pool gives up opening one. Short, because the
            callers retry by themselves, and the pool would back off for minutes.
    """

    def __init__(self, address: Address, *, prepares: bool, patience: float = 5.0) -> None:
        self._address = address
        self._prepares = prepares
        self._living: WeakSet[Connection] = WeakSet()
        self._size = 0
        self._is_small = False
        self._opening = 0
        self._grow_at = -math.inf
        self._fault: Exception | None = None
        super().__init__(
            address.dsn,
            connection_class=_Pooled,
            min_size=1,
            max_size=4,
            open=False,
            timeout=patience,
            reconnect_timeout=patience,
            max_idle=60.0,  # another process may need the connections that this pool does not
            kwargs={
                "pool": self,
                "autocommit": True,
                "application_name": "push-listener",
                "prepare_threshold": 5 if prepares else None,
            },
        )

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Connection]:  # noqa: ASYNC109
        """A connection for one caller at a time. Raises psycopg.OperationalError when there is none in time."""
        if self._address.is_too_early and not self._living_count:
            self._address.raise_if_too_early()
        try:
            async with super().connection(timeout) as conn:
                try:
                    if self._prepares and isinstance(conn, _Pooled):
                        await self._plan_anew(conn)
                    yield conn
                except psycopg.Error as error:
                    if spoils_session(error):
                        await self._replace(conn, error)
                    raise
        except PoolTimeout as error:
            raise error from self._fault

    def note_size(self, size: int) -> None:
        """Notes the size of ``push_notifications``, in bytes."""
        self._size = size

    async def _plan_anew(self, conn: _Pooled) -> None:
        """Discards the plans of a session if the table has doubled since they were made.

        Postgres itself makes new plans only when the table is analyzed, which takes autovacuum a minute and more. Until
        then, a plan for few rows may read all of an index for each batch of a broadcast. The log of deliveries grows
        with the table, and the devices of a user are found by an index whatever their number.
        """
        if self._size >= 2 * max(conn.planned_for, _SMALL_BYTES):
            await conn.execute("discard plans", prepare=False)
        elif self._size >= conn.planned_for:
            return
        conn.planned_for = self._size

    async def shrink(self) -> None:
        """Leaves connections to others: closes all but one, and opens no more until ``grow``."""
        self._is_small = True
        await self.drain()

    def grow(self) -> None:
        """Lets the pool open more connections again, after ``shrink``."""
        self._is_small = False

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Open one more connection within this block. Raises psycopg.OperationalError if the pool is not to grow."""
        others = self._opening + self._living_count
        if others and (self._is_small or time.monotonic() < self._grow_at):
            raise psycopg.OperationalError("no more connections allowed")
        self._opening += 1
        try:
            with self._address.login():
                yield
        except (psycopg.Error, TimeoutError) as error:
            self._fault = error
            if others and condition(error) in (Condition.FULL, Condition.NO_ANSWER):
                pause = random.uniform(*_BETWEEN_TRIES_TO_GROW_S)  # noqa: S311  # jitter
                self._grow_at = time.monotonic() + pause
            raise
        finally:
            self._opening -= 1
        self._fault = None

    async def prepare(self, conn: Connection) -> None:
        """Makes a new connection ready. Raises psycopg.Error or TimeoutError."""
        self._living.add(conn)
        if self._prepares:
            async with asyncio.timeout(_CONFIGURE_PATIENCE_S):
                await prepare_session(conn)
                await conn.execute(PLANNING)

    @property
    def _living_count(self) -> int:
        return sum(not conn.closed for conn in self._living)

    async def _replace(self, conn: Connection, error: psycopg.Error) -> None:
        """Closes a connection; and all others too, unless new ones would meet the same error."""
        await conn.close()
        if condition(error) is not Condition.PRIVILEGE:
            await self.drain()


class _Pooled(AsyncConnection[tuple[Any, ...]]):
    """A connection of a pool."""

    pool: ServicePool
    planned_for: int
    """The size of ``push_notifications``, in bytes, when the plans of the session were made, or less."""

    @classmethod
    async def connect(cls, conninfo: str = "", *, pool: ServicePool, **kwargs: Any) -> Self:  # type: ignore[override]
        """Opens a connection, for the pool."""
        with pool.opening():
            conn = await super().connect(conninfo, **kwargs)
            conn.pool, conn.planned_for = pool, pool._size
            try:
                await pool.prepare(conn)
            except BaseException:
                await conn.close()
                raise
        return conn


async def fetch_value(
    conn: AsyncConnection[Any], statement: QueryNoTemplate, values: Params | None = None
) -> Any:
    """The first column of the first row; None if there is no row."""
    cursor = conn.cursor(row_factory=scalar_row)
    await cursor.execute(statement, values)
    return await cursor.fetchone()


async def is_transaction_pooler(address: Address, probes: int = _PROBES) -> bool:
    """Whether an address leads to a pooler in transaction mode, of any make.

    It does if one backend serves two connections, or two backends serve one connection. An idle pooler shows this at
    once. In a busy one, ``probes`` at random moments leave hardly a chance of missing it.

    Raises psycopg.OperationalError, also when the second connection is not served within some seconds.
    """
    backends: set[tuple[str, int]] = set()
    try:
        async with asyncio.timeout(_PROBE_PATIENCE_S), AsyncExitStack() as stack:
            first, second = [
                await stack.enter_async_context(await address.connect("push-listener", prepares=False))
                for _ in range(2)
            ]
            for _ in range(probes):
                backends.add(("first", await fetch_value(first, _BACKEND)))
                async with (
                    second.transaction()
                ):  # a pooler cannot give the backend to another client meanwhile
                    backends.add(("second", await fetch_value(second, _BACKEND)))
                    backends.add(("first", await fetch_value(first, _BACKEND)))
                if _are_shared(backends):
                    return True
                await asyncio.sleep(random.uniform(0.0, _BETWEEN_PROBES_S))  # noqa: S311  # not secrecy
    except TimeoutError:
        raise ConnectionTimeout("connection timeout expired") from None
    return False


async def sees(one: Connection, other: Connection) -> bool:
    """Whether two connections lead to the same database of the same server. Raises psycopg.Error.

    ``one`` must keep its session from statement to statement; ``other`` may go through a transaction pooler. A name, an
    oid and a system identifier are the same in every copy; a lock is not.
    """
    key = {"high": secrets.randbelow(1 << 31), "low": secrets.randbelow(1 << 31)}
    await one.execute(_HOLD, key)
    try:
        return bool(await fetch_value(other, _IS_HELD, key))
    finally:
        await one.execute(_LET_GO, key)


def is_transaction_pooler_blocking(dsn: str) -> bool:
    """Does the same as ``is_transaction_pooler``, for callers that block; an event loop may run in their thread."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, is_transaction_pooler(Address(dsn))).result()


def keeps_locks(dsn: str) -> bool:
    """Whether the lock of a session outlives its client, as in a session pooler that resets nothing. Blocks.

    Raises psycopg.Error. If the answer is yes, the lock of the probe remains; nobody else uses that lock.
    """
    key = {"high": secrets.randbelow(1 << 31), "low": secrets.randbelow(1 << 31)}
    with psycopg.connect(with_defaults(dsn), autocommit=True) as watching:
        with psycopg.connect(with_defaults(dsn), autocommit=True) as ending:
            ending.execute(_HOLD, key)
        for _ in range(_LOOKS_FOR_LOCK):
            if watching.execute(_IS_HELD, key).fetchone() == (False,):
                return False
            time.sleep(_BETWEEN_LOOKS_S)
    return True


def _are_shared(backends: set[tuple[str, int]]) -> bool:
    """Whether the (connection, backend) pairs are anything but one backend for each of the two connections."""
    return len(backends) > 2 or len({backend for _, backend in backends}) < 2
