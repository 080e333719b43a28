"""Calls over a connection to Postgres."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from typing import Any, LiteralString, Self
from weakref import WeakSet

import psycopg
from psycopg import sql
from psycopg.abc import AdaptContext
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import scalar_row, tuple_row
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.json import Jsonb, JsonbLoader
from psycopg.types.uuid import UUIDLoader
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from listener.client.errors import ClientError, InvalidArgument, Unavailable, from_sqlstate, not_installed
from listener.client.loops import PerLoop
from listener.client.transport import TIMEOUT, to_json

MAX_CONNECTIONS = 4
CONNECT_TIMEOUT = 10.0
"""Seconds to wait for a connection."""

_POOL_NAME = "listener.client"

_TRUST_IDLE = 1.0
"""Seconds since its last use for which a connection is trusted to be alive. After that, a round trip checks it."""
_CUT_AFTER = 5.0
"""Seconds that a server has to react to the request to cancel a statement. Then the client cuts the connection."""

# The connection ends within 25 s if the server has vanished, within 15 s if it does not acknowledge what was sent.
_KEEPALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}

_RETURNS = """
select p.proretset, p.prorettype = 'pg_catalog.void'::pg_catalog.regtype
  from pg_catalog.pg_proc p
  where p.pronamespace = 'public'::pg_catalog.regnamespace and p.proname = %s
  limit 1
"""

# Postgres uses these indexes only if the condition is written as in them: push_notifications_over and
# push_notifications_given_up.
_ENDED: tuple[LiteralString, ...] = (
    "status::text in ('sent', 'delivered', 'expired', 'cancelled') and next_attempt_at is null",
    "status::text in ('dead', 'failed') and next_attempt_at is null",
)
_DELETED_AT_ONCE = 1000
_DELETE: LiteralString = """
with old as materialized (
  select id from public.push_notifications
    where {ended} and updated_at < pg_catalog.now() - %(age)s::interval
    order by updated_at
    limit %(limit)s
    for update skip locked
), gone as (
  delete from public.push_notifications where id = any (array(select id from old)) returning id
), logs as (
  delete from public.push_delivery_logs where push_id = any (array(select id from gone))
)
select pg_catalog.count(*) from gone
"""

Pool = AsyncConnectionPool[psycopg.AsyncConnection[Any]]


class Direct:
    """Calls functions over connections to Postgres, as the role of the connection.

    Every event loop that uses it gets its own connections, so one ``Direct`` may serve an application, its
    telemetry thread and the processes that it forks. The connections may go through a pooler in transaction mode.
    """

    def __init__(
        self,
        dsn: str | Pool,
        *,
        max_connections: int = MAX_CONNECTIONS,
        connect_timeout: float = CONNECT_TIMEOUT,
        timeout: float = TIMEOUT,  # of each call
    ) -> None:
        """Connects nowhere yet.

        Args:
            dsn: a connection string, or an open pool of the application, which belongs to one event loop.
            max_connections: for each event loop. A pool of the application has its own limit.
            connect_timeout: seconds to wait for a connection.
            timeout: seconds for each call; then the statement is cancelled.

        Raises:
            TypeError: the pool is not an ``AsyncConnectionPool``.
        """
        if not isinstance(dsn, str | AsyncConnectionPool):
            raise TypeError(
                f"Direct takes a connection string or a psycopg_pool.AsyncConnectionPool, not {type(dsn).__name__}"
            )
        self._dsn = dsn
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._pools = PerLoop(lambda: _Pool(str(dsn), max_connections), _Pool.let_go)
        self._returns: dict[str, tuple[bool, bool]] = {}

    @property
    def belongs_to_one_loop(self) -> bool:
        """Whether only the event loop of the application's pool can use it."""
        return not isinstance(self._dsn, str)

    async def call(self, function: str, args: Mapping[str, Any]) -> Any:
        """See ``Transport.call``."""
        problem: ClientError
        try:
            async with self._connection() as connection, _limit(connection, self._timeout):
                return await _call_on(connection, function, args, self._returns)
        except psycopg.Error as error:
            problem = translated(error)
        except TimeoutError:
            problem = self._too_late()
        # Raised outside the except clause, so that psycopg's error is not its context: that text may quote the row.
        raise problem

    async def call_in(
        self, connection: psycopg.AsyncConnection[Any], function: str, args: Mapping[str, Any]
    ) -> Any:
        """Like ``call``, but on the caller's connection, in its transaction and with the rights of its role.

        Raises:
            TypeError: ``connection`` is not an asynchronous connection of psycopg.
        """
        if not isinstance(connection, psycopg.AsyncConnection):
            raise TypeError(
                f"conn must be a psycopg.AsyncConnection, not {type(connection).__name__}: on a synchronous connection "
                "use listener.client.enqueue(conn, push); with another driver run enqueue_push with push.arguments()"
            )
        try:
            return await _call_on(connection, function, args, self._returns)
        except psycopg.Error as error:
            problem = translated(error)
        raise problem

    async def delete_ended(self, older_than: timedelta) -> int:
        """Deletes pushes that ended longer ago than ``older_than``, with their log rows; returns how many.

        It works in short transactions, and needs the right to delete, which the owner and ``service_role`` have. It
        skips rows that another transaction has locked.
        """
        deleted = 0
        problem: ClientError
        try:
            for condition in _ENDED:
                statement = sql.SQL(_DELETE).format(ended=sql.SQL(condition))
                while True:
                    async with (
                        self._connection() as connection,
                        _limit(connection, self._timeout),
                        psycopg.AsyncCursor(connection, row_factory=scalar_row) as cursor,
                    ):
                        await cursor.execute(statement, {"age": older_than, "limit": _DELETED_AT_ONCE})
                        count = await cursor.fetchone() or 0
                    deleted += count
                    if count < _DELETED_AT_ONCE:
                        break
            return deleted
        except psycopg.Error as error:
            problem = translated(error)
        except TimeoutError:
            problem = self._too_late()
        raise problem

    async def close(self) -> None:
        """Closes the connections of the running event loop. A pool of the application stays open."""
        pool = self._pools.pop()
        if pool is not None:
            await pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        if not isinstance(self._dsn, str):
            pool: Pool = self._dsn
        else:
            pool = await self._own_pool(self._dsn)
        connection, reason = None, ""
        try:
            connection = await pool.getconn(self._connect_timeout)
        except (PoolTimeout, TooManyRequests, PoolClosed) as error:
            reason = (isinstance(pool, _Pool) and pool.why_not()) or str(error)
        if connection is None:
            raise Unavailable(
                f"no connection to Postgres within {self._connect_timeout:g} s: {reason}",
                hint="check the address, the password and the number of connections",
            )
        try:
            if connection.autocommit:
                yield connection
            else:  # the connection is from the application's pool
                async with connection.transaction():
                    yield connection
        finally:
            await pool.putconn(connection)

    async def _own_pool(self, dsn: str) -> _Pool:
        pool = self._pools.get()
        if pool.closed:
            _check_dsn(dsn)
            await pool.open()
        return pool

    def _too_late(self) -> Unavailable:
        return Unavailable(
            f"Postgres has not answered within {self._timeout:g} s",
            hint="the statement was cancelled, unless it had just ended",
            may_have_happened=True,
        )


class _Connection(psycopg.AsyncConnection[Any]):
    """A connection that knows when it was last used."""

    used_at = 0.0


class _AlreadyTold(logging.Filter):
    """Drops what psycopg_pool logs about the pools of this module: many lines while the database cannot be reached.

    The error that the caller gets says the same.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        values = record.args if isinstance(record.args, tuple) else ()
        return not any(each == _POOL_NAME or isinstance(each, _Connection) for each in values)


logging.getLogger("psycopg.pool").addFilter(_AlreadyTold())


class _Pool(AsyncConnectionPool[psycopg.AsyncConnection[Any]]):
    """A pool that remembers why it could not connect. The error of psycopg_pool only says that it took too long."""

    def __init__(self, dsn: str, max_connections: int) -> None:
        self.last_error: psycopg.Error | None = None
        self._connections: WeakSet[_Connection] = WeakSet()
        self._dsn = dsn
        pool = self

        class Remembering(_Connection):
            @classmethod
            async def connect(
                cls,
                conninfo: str = "",
                *,
                context: AdaptContext | None = None,
                **kwargs: Any,
            ) -> Self:
                try:
                    connection = await super().connect(conninfo, context=context, **kwargs)
                except psycopg.Error as error:
                    pool.last_error = error
                    raise
                pool.last_error = None
                pool._connections.add(connection)
                return connection

        super().__init__(
            dsn,
            connection_class=Remembering,
            kwargs={"autocommit": True, "prepare_threshold": None, "client_encoding": "utf8", **_KEEPALIVE},
            min_size=0,
            max_size=max_connections,
            open=False,
            check=_check,
            reset=_note_use,
            name=_POOL_NAME,
        )

    def why_not(self) -> str | None:
        """Why the pool could not connect, without a password; None if the last attempt succeeded."""
        return None if self.last_error is None else _without_password(self._dsn, str(self.last_error))

    def let_go(self) -> None:
        """Closes the connections without their event loop, which is closed already."""
        for each in list(self._connections):
            each.pgconn.finish()


def _check_dsn(dsn: str) -> None:
    """Raises InvalidArgument if libpq cannot parse it. libpq's own error quotes a part, which may be the password."""
    with suppress(psycopg.Error):
        conninfo_to_dict(dsn)
        return
    raise InvalidArgument(
        "the connection string cannot be read",
        hint="a URL begins with postgresql://, and in a password each of : / @ ? # % is written as in %40",
    )


def _without_password(dsn: str, reason: str) -> str:
    """An error text of libpq without the password. libpq quotes host, port, user and database, and a password with an
    unescaped character may have been parsed as a part of one of these.
    """
    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    # The name of an abstract socket may begin with @.
    odd = any("@" in parts.get(name, "")[1:] for name in ("host", "user", "dbname"))
    if odd or not re.fullmatch(r"[\d,]*", parts.get("port", "")):
        return (
            "the connection string seems to have a password with a character that must be written as in %40"
        )
    for name in ("password", "sslpassword"):
        if parts.get(name):
            reason = reason.replace(parts[name], "...")
    return reason


async def _check(connection: psycopg.AsyncConnection[Any]) -> None:
    """Raises OperationalError if a connection that was idle for a while is dead, so that the pool replaces it."""
    if isinstance(connection, _Connection) and time.monotonic() - connection.used_at > _TRUST_IDLE:
        await AsyncConnectionPool.check_connection(connection)


async def _note_use(connection: psycopg.AsyncConnection[Any]) -> None:
    if isinstance(connection, _Connection):
        connection.used_at = time.monotonic()


@asynccontextmanager
async def _limit(connection: psycopg.AsyncConnection[Any], seconds: float) -> AsyncIterator[None]:
    """Cancels a statement after ``seconds``, and cuts the connection if the server does not react to that.

    The cut is needed because psycopg waits without a limit for the end of a cancelled statement. Raises TimeoutError.
    """
    cutting = asyncio.get_running_loop().call_later(seconds + _CUT_AFTER, _cut, connection)
    try:
        async with asyncio.timeout(seconds):
            yield
    finally:
        cutting.cancel()


def _cut(connection: psycopg.AsyncConnection[Any]) -> None:
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as raw:
        raw.shutdown(socket.SHUT_RDWR)


async def _call_on(
    connection: psycopg.AsyncConnection[Any],
    function: str,
    args: Mapping[str, Any],
    returns: dict[str, tuple[bool, bool]],
) -> Any:
    """Calls a function on a connection, in its transaction if it has one.

    Args:
        returns: a cache: for each function whether it returns a set, and whether it returns nothing.

    Raises:
        psycopg.Error: Postgres has refused the call, or the connection has failed.
        NotInstalled: the function does not exist.
        InvalidArgument: an argument cannot be sent.
    """
    if function not in returns:
        async with psycopg.AsyncCursor(connection, row_factory=tuple_row) as looks:
            await looks.execute(_RETURNS, (function,))
            row = await looks.fetchone()
        if row is None:
            raise not_installed(function, list(args))
        returns[function] = row
    is_set, is_void = returns[function]
    statement, values = statement_for(function, args, is_void=is_void)
    # The cursor factory of the caller's connection may be another one, such as RawCursor with other placeholders.
    async with psycopg.AsyncCursor(connection, row_factory=scalar_row) as cursor:
        read_as_psycopg(cursor)
        await cursor.execute(statement, values)
        found = await cursor.fetchall()
    if is_void:
        return None
    return found if is_set else found[0]


def read_as_psycopg(cursor: psycopg.AsyncCursor[Any] | psycopg.Cursor[Any]) -> None:
    """Restores psycopg's way to read jsonb, timestamptz and uuid, for one cursor.

    A framework may have registered others on the connection: Django, for example, makes it read jsonb as text.
    """
    cursor.adapters.register_loader("jsonb", JsonbLoader)
    cursor.adapters.register_loader("timestamptz", TimestamptzLoader)
    cursor.adapters.register_loader("uuid", UUIDLoader)


def statement_for(
    function: str, args: Mapping[str, Any], *, is_void: bool = False
) -> tuple[sql.Composed, dict[str, Any]]:
    """The statement that calls a function with named arguments, and its values. The result is JSON."""
    return _statement(function, tuple(args), is_void), {name: _adapted(value) for name, value in args.items()}


@lru_cache(maxsize=256)  # composing a statement takes as long as the rest of a call
def _statement(function: str, names: tuple[str, ...], is_void: bool) -> sql.Composed:
    return sql.SQL("select {} from public.{}({}) as f").format(
        sql.SQL("null" if is_void else "pg_catalog.to_jsonb(f)"),
        sql.Identifier(function),
        sql.SQL(", ").join(sql.SQL("{} => {}").format(sql.Identifier(n), sql.Placeholder(n)) for n in names),
    )


def _adapted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _jsonb(value)
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        return _array(value)
    if isinstance(value, str):
        to_json(value)  # its error says what to do, unlike that of psycopg
    return value


def _array(values: list[Any]) -> str:
    """An array of JSON as a Postgres array literal. A list of ``Jsonb`` would take psycopg five times as long."""
    texts = (to_json(each).replace("\\", "\\\\").replace('"', '\\"') for each in values)
    return "{" + ",".join(f'"{text}"' for text in texts) + "}"


def _jsonb(value: Mapping[str, Any]) -> Jsonb:
    text = to_json(value)
    return Jsonb(value, dumps=lambda _: text)


def translated(error: psycopg.Error) -> ClientError:
    """Turns an error of psycopg into one of this package."""
    if error.sqlstate is not None:
        message = error.diag.message_primary or type(error).__name__
        return from_sqlstate(error.sqlstate, message, error.diag.message_hint)
    if isinstance(error, psycopg.OperationalError):
        return Unavailable(f"the connection to Postgres has ended: {error}", may_have_happened=True)
    return InvalidArgument(f"psycopg cannot send an argument: {error}")
