"""Retention: deletes pushes that ended long ago, in short transactions that do not disturb other work.

It deletes only rows in a final status, and skips rows that another transaction has locked. Statistics do not change,
because another table holds their counts.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import structlog
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import namedtuple_row, scalar_row

from listener.metrics.own import Metrics
from listener.postgres import errors
from listener.postgres.connect import ENCODING, Connection, fetch_value, prepare_session
from listener.postgres.locks import PURGE_LOCK
from listener.postgres.statements import load

log = structlog.get_logger(__name__)
_rng = random.Random()  # noqa: S311  # jitter, not secrecy

# listener/postgres/statements.py says why names have their schema, and columns a cast.

_MAY_DELETE: LiteralString = """
select pg_catalog.has_table_privilege('public.push_notifications', 'delete')
    and pg_catalog.has_table_privilege('public.push_delivery_logs', 'delete')
"""

# A session that is not push-listener's may hold the lock. It must not prevent the purge, so then every worker purges.
# Two workers that purge at the same time do no harm.
_MAY_PURGE: LiteralString = """
select case when pg_catalog.pg_try_advisory_lock(%(key)s::bigint) then true
            else not exists (select from push_listener.lock_holders where lock = 'purge' and granted and is_ours) end
"""

# Each condition must be written exactly as in its index (push_notifications_over, push_notifications_given_up);
# otherwise Postgres reads the whole history. next_attempt_at may be set in a row that the application ended.
_OVER = """status::text in ('sent', 'delivered', 'expired', 'cancelled')
      and updated_at < pg_catalog.to_timestamp(%(before)s::float8)
      and (next_attempt_at is null or next_attempt_at < pg_catalog.to_timestamp(%(before)s::float8))"""
_DEAD = """status::text in ('dead', 'failed') and updated_at < pg_catalog.to_timestamp(%(before)s::float8)
      and (next_attempt_at is null
           or (status::text = 'dead' and next_attempt_at < pg_catalog.to_timestamp(%(before)s::float8)))"""

_PUSHES = load(__file__, "purge_pushes")
_ORPHANS = load(__file__, "purge_orphans")

_TELEMETRY = """
delete from public.telemetry_logs
  where ctid >= pg_catalog.format('(%%s,0)', %(block)s::bigint)::tid
    and ctid < pg_catalog.format('(%%s,0)', %(end)s::bigint)::tid
    and processed_at < pg_catalog.to_timestamp(%(before)s::float8)
"""
_TELEMETRY_BLOCKS = """
select greatest(pg_catalog.pg_relation_size('public.telemetry_logs'),
                (select pg_catalog.max(pg_catalog.pg_relation_size(relid))
                   from pg_catalog.pg_partition_tree('public.telemetry_logs')))
       / pg_catalog.current_setting('block_size')::integer
"""
_BLOCKS = 500

_COUNT_PUSHES: LiteralString = "select pg_catalog.count(*) from public.push_notifications where {old}"
_COUNT_LOGS: LiteralString = """
select pg_catalog.count(*) from public.push_delivery_logs
  where push_id in (select id from public.push_notifications where {old})
"""
_COUNT_ORPHANS = """
select pg_catalog.count(*) from public.push_delivery_logs l
  where l.created_at < pg_catalog.to_timestamp(%(before)s::float8) and l.push_id is not null
    and not exists (select from public.push_notifications p where p.id = l.push_id)
"""
_COUNT_TELEMETRY = """
select pg_catalog.count(*) from public.telemetry_logs
  where processed_at < pg_catalog.to_timestamp(%(before)s::float8)
"""

# Times are exchanged as Unix time. As text they would depend on DateStyle, and might be read as another zone or day.
_CUTOFF = (
    "select extract(epoch from pg_catalog.now() - pg_catalog.make_interval(secs => %(age)s::float8))::float8"
)

# The triggers that may keep a row from being deleted, for example to mark it as deleted instead.
_KEEPERS = """
select g.tgname::text
  from pg_catalog.pg_trigger g
  where g.tgrelid = 'public.push_notifications'::regclass::oid and not g.tgisinternal and g.tgenabled not in ('D', 'R')
    and (g.tgtype::int4 & 11) = 11
  order by g.tgname
"""

_WORKERS = """
delete from push_listener.workers where stopped_at < pg_catalog.to_timestamp(%(before)s::float8)
"""
_COUNT_WORKERS = """
select pg_catalog.count(*) from push_listener.workers where stopped_at < pg_catalog.to_timestamp(%(before)s::float8)
"""

INTERVAL = 3600.0
"""The approximate number of seconds between two purges by the service."""

SLICES = 24
"""The log is searched for rows without a push in this many parts, which are ranges of push ids."""

# With these settings the kernel closes the connection if the server has vanished.
_KEEPALIVE = "keepalives=1 keepalives_idle=60 keepalives_interval=10 keepalives_count=3 connect_timeout=10"


@dataclass(frozen=True, slots=True)
class Purged:
    """The numbers of rows that were deleted, or that would be."""

    pushes: int = 0
    logs: int = 0
    telemetry: int = 0
    workers: int = 0
    kept: int = 0
    """Pushes that a trigger of the application kept from being deleted."""

    def __add__(self, other: Purged) -> Purged:
        return Purged(
            self.pushes + other.pushes,
            self.logs + other.logs,
            self.telemetry + other.telemetry,
            self.workers + other.workers,
            self.kept + other.kept,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction of a purge."""

    gone: Purged
    share: float
    """The fraction of the whole work that is done after this step, from 0 to 1."""


async def connect(dsn: str) -> Connection:
    """Opens a connection for a purge. Raises psycopg.OperationalError."""
    conn = await psycopg.AsyncConnection.connect(
        make_conninfo(_KEEPALIVE, **conninfo_to_dict(dsn)),
        autocommit=True,
        client_encoding=ENCODING,
        application_name="push-listener purge",
        prepare_threshold=None,
    )
    # The connection is idle between two purges, and a role may have timeouts that are meant for short requests. Behind
    # a transaction pooler these settings are lost, but nothing depends on them.
    await conn.execute("set idle_session_timeout = 0; set statement_timeout = '5min'")
    return conn


async def moment(conn: Connection, age: timedelta) -> float:
    """The Unix time ``age`` ago, by the database's clock. A row is old if it has not changed since then."""
    return float(await fetch_value(conn, _CUTOFF, {"age": age.total_seconds()}))


async def keepers(conn: Connection) -> list[str]:
    """The triggers that may keep rows of the queue from being deleted. Raises psycopg.Error."""
    cursor = conn.cursor(row_factory=scalar_row)
    await cursor.execute(_KEEPERS)
    return await cursor.fetchall()


async def count(conn: Connection, before: float, *, dead: bool, telemetry: bool) -> Purged:
    """Counts the rows that a purge would delete. It reads the log, which may take long. Raises psycopg.Error."""
    found = Purged()
    for old in _groups(dead):
        pushes = await fetch_value(conn, sql.SQL(_COUNT_PUSHES).format(old=old), {"before": before})
        logs = await fetch_value(conn, sql.SQL(_COUNT_LOGS).format(old=old), {"before": before})
        found += Purged(pushes, logs)
    found += Purged(
        logs=await fetch_value(conn, _COUNT_ORPHANS, {"before": before}),
        workers=await fetch_value(conn, _COUNT_WORKERS, {"before": before}),
    )
    if telemetry:
        found += Purged(telemetry=await fetch_value(conn, _COUNT_TELEMETRY, {"before": before}))
    return found


async def count_pushes(conn: Connection, before: float, *, dead: bool) -> int:
    """Counts the pushes that a purge would delete. It reads only their index. Raises psycopg.Error."""
    statements = [sql.SQL(_COUNT_PUSHES).format(old=old) for old in _groups(dead)]
    return sum([await fetch_value(conn, statement, {"before": before}) for statement in statements])


async def pushes(
    conn: Connection, before: float, *, dead: bool, batch: int, expected: int = 0
) -> AsyncIterator[Step]:
    """Deletes pushes that ended before a time, with their log rows, the oldest first.

    Raises psycopg.errors.ForeignKeyViolation if a table of the application refers to one of the pushes, or another
    psycopg.Error. The steps before the error are not undone.

    Args:
        conn: a connection in autocommit.
        before: see ``moment``.
        dead: whether dead pushes are deleted too.
        batch: how many pushes one transaction deletes.
        expected: how many pushes will be deleted, to compute the share that each step reports.
    """
    done = 0
    for old in _groups(dead):
        statement = sql.SQL(_PUSHES).format(old=old)
        start, beyond, refused = -math.inf, False, False
        while start is not None:
            gone = await _row(conn, statement, before=before, start=start, beyond=beyond, limit=batch)
            # If a trigger has kept the whole batch, the next batch must begin behind it. Otherwise the purge would
            # never end.
            start, beyond = gone.newest, gone.pushes == 0
            refused = refused or gone.pushes < gone.found
            done += gone.found if beyond else gone.pushes
            yield Step(Purged(gone.pushes, gone.logs), min(done / max(expected, 1), 1.0))
        if refused:
            kept = await fetch_value(conn, sql.SQL(_COUNT_PUSHES).format(old=old), {"before": before})
            yield Step(Purged(kept=kept), min(done / max(expected, 1), 1.0))


async def orphans(
    conn: Connection, before: float, *, batch: int, slices: Sequence[int] = range(SLICES)
) -> AsyncIterator[Step]:
    """Deletes old log rows whose push no longer exists. Rows without a push_id remain. Raises psycopg.Error."""
    for done, number in enumerate(slices):
        after: UUID | None = _edge(number)
        until = _edge(number + 1)
        while after is not None:
            page = await _row(conn, _ORPHANS, before=before, after=after, until=until, limit=batch)
            after = page.last
            yield Step(Purged(logs=page.logs), (done + (after is None)) / len(slices))


async def telemetry(conn: Connection, before: float) -> AsyncIterator[Step]:
    """Deletes rows of ``telemetry_logs`` that were processed before a time. Raises psycopg.Error."""
    blocks = await fetch_value(conn, _TELEMETRY_BLOCKS)
    for block in range(0, blocks, _BLOCKS):
        end = block + _BLOCKS
        cursor = await conn.execute(_TELEMETRY, {"block": block, "end": end, "before": before})
        yield Step(Purged(telemetry=cursor.rowcount), min(end / blocks, 1.0))


async def workers(conn: Connection, before: float) -> int:
    """Deletes the records of workers that stopped before a time; returns their number. Raises psycopg.Error.

    If the role may delete pushes but not these records, it deletes none.
    """
    try:
        return (await conn.execute(_WORKERS, {"before": before})).rowcount
    except psycopg.errors.InsufficientPrivilege:
        return 0


async def gently(steps: AsyncIterator[Step], rest: float) -> AsyncIterator[Step]:
    """Yields the same steps and pauses after each, for ``rest`` times the duration of the step."""
    started = time.monotonic()
    async for step in steps:
        yield step
        await asyncio.sleep(rest * (time.monotonic() - started))
        started = time.monotonic()


async def keep(dsn: str, age: timedelta, metrics: Metrics, *, is_session: bool) -> None:
    """Purges about once every ``INTERVAL`` until cancelled, in one process at a time.

    The process whose connection holds the lock purges. The others try to take the lock once every ``INTERVAL``. While a
    stranger holds the lock, each process purges. It raises nothing, so that no failure here affects pushes.

    Args:
        dsn: the address.
        age: pushes that ended longer ago are deleted.
        metrics: counts what is deleted.
        is_session: whether each connection has its own session. Behind a transaction pooler it has not.
    """
    await _say_if_forbidden(dsn)
    wait = _rng.uniform(0.1, 0.5)
    while True:
        await asyncio.sleep(wait * INTERVAL)
        try:
            async with await connect(dsn) as conn:
                if is_session:  # it will be idle for an hour
                    await prepare_session(conn)
                while await fetch_value(conn, _MAY_PURGE, {"key": PURGE_LOCK}):
                    await _once(conn, age, metrics)
                    await asyncio.sleep(_rng.uniform(0.8, 1.2) * INTERVAL)
        except Exception as error:
            metrics.database_errors.labels("purge").inc()
            log.warning(
                "cannot purge",
                error=type(error).__name__,
                reason=errors.explain(error),
                constraint=error.diag.constraint_name if isinstance(error, psycopg.Error) else None,
            )
        wait = _rng.uniform(0.8, 1.2)


async def _say_if_forbidden(dsn: str) -> None:
    """Says at the start if the role may not delete; the first purge is much later. The recommended role may not."""
    try:
        async with await connect(dsn) as conn:
            if await fetch_value(conn, _MAY_DELETE):
                return
    except psycopg.Error:
        return  # the first purge reports it
    log.error(
        "RETENTION has no effect: the user of LISTEN_DATABASE_URL, or else DATABASE_URL, may not delete pushes",
        remedy="unset RETENTION, and let the owner of the tables call push-listener purge from time to time; or grant "
        "delete on push_notifications and push_delivery_logs, and select and delete on push_listener.workers",
    )


async def _once(conn: Connection, age: timedelta, metrics: Metrics) -> None:
    before = await moment(conn, age)
    gone, orphaned = Purged(), Purged()
    async for step in gently(pushes(conn, before, dead=False, batch=1000), rest=4.0):
        metrics.purged.labels("push_notifications").inc(step.gone.pushes)
        metrics.purged.labels("push_delivery_logs").inc(step.gone.logs)
        gone += step.gone
    part = [datetime.now(UTC).hour * SLICES // 24]  # each hour of the day has its own part of the log
    async for step in gently(orphans(conn, before, batch=1000, slices=part), rest=4.0):
        metrics.purged.labels("push_delivery_logs").inc(step.gone.logs)
        orphaned += step.gone
    stopped = await workers(conn, before)
    if gone.pushes or orphaned.logs or stopped:
        log.info(
            "purged", pushes=gone.pushes, logs=gone.logs, logs_without_push=orphaned.logs, workers=stopped
        )
    if gone.kept:
        log.warning(
            "a trigger keeps pushes from being deleted", pushes=gone.kept, triggers=await keepers(conn)
        )


def _groups(dead: bool) -> list[sql.SQL]:
    return [sql.SQL(_OVER), sql.SQL(_DEAD)] if dead else [sql.SQL(_OVER)]


def _edge(number: int) -> UUID:
    """The id at which a slice of all ids begins (exclusive)."""
    return UUID(int=min(number * (1 << 128) // SLICES, (1 << 128) - 1))


async def _row(conn: Connection, statement: sql.Composed | LiteralString, **values: object) -> Any:
    """The only row, as a named tuple."""
    cursor = conn.cursor(row_factory=namedtuple_row)
    await cursor.execute(statement, values)
    return await cursor.fetchone()
