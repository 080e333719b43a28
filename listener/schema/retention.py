"""Retention: deletes what ended long ago, in short transactions beside whatever else goes on.

Only rows in a status that nothing leaves by itself are deleted, and rows that somebody holds are passed over. What
statistics count is kept elsewhere, and stays.
"""

from __future__ import annotations

import asyncio
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

from listener.metrics import Metrics
from listener.postgres import errors

log = structlog.get_logger(__name__)
_rng = random.Random()  # noqa: S311  # jitter, not secrecy

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

LOCK_KEY = 7_308_332_045_000_003
"""Advisory lock of the one worker that purges."""

# Why names have their schema, and columns a cast: see listener/postgres/queue.py.

# A stranger that holds the lock keeps nobody from it: two that purge at once do no harm.
_MAY_PURGE: LiteralString = """
select case when pg_catalog.pg_try_advisory_lock(%(key)s::bigint) then true
            else not exists (select from push_listener.lock_holders where lock = 'purge' and granted and is_ours) end
"""

# Each condition stands here as in the index that finds the rows (push_notifications_over, ..._given_up): otherwise
# Postgres would read the whole history. next_attempt_at: where an application ended the row, it may have been left.
_OVER = """status::text in ('sent', 'delivered', 'expired', 'cancelled') and updated_at < %(before)s
      and (next_attempt_at is null or next_attempt_at < %(before)s)"""
_DEAD = """status::text in ('dead', 'failed') and updated_at < %(before)s
      and (next_attempt_at is null or (status::text = 'dead' and next_attempt_at < %(before)s))"""

# Ids are compared with an array, so that rows are found one by one through their index, whatever Postgres believes
# of the size of the table.
_PUSHES: LiteralString = """
with old as materialized (
  select id, updated_at
    from public.push_notifications
    where {old} and updated_at >= %(start)s
    order by updated_at
    limit %(limit)s
    for update skip locked
), gone as (
  delete from public.push_notifications where id = any (array(select id from old)) returning id
), logs as (
  delete from public.push_delivery_logs where push_id = any (array(select id from gone)) returning 1
)
select (select pg_catalog.count(*) from gone), (select pg_catalog.count(*) from logs),
       (select pg_catalog.max(updated_at)::text from old)
"""

# Log rows of pushes that are not there any more. The subselect keeps Postgres from reading all pushes to join them.
_ORPHANS: LiteralString = """
with page as materialized (
  select push_id
    from public.push_delivery_logs
    where push_id > %(after)s and push_id <= %(until)s
    order by push_id
    limit %(limit)s
), orphans as materialized (
  select l.push_id
    from (select distinct push_id from page) l
    where (select p.id from public.push_notifications p where p.id = l.push_id) is null
), gone as (
  delete from public.push_delivery_logs
    where push_id = any (array(select push_id from orphans)) and created_at < %(before)s
    returning 1
)
select (select pg_catalog.count(*) from gone), (select push_id from page order by push_id desc limit 1)
"""

_TELEMETRY = """
delete from public.telemetry_logs
  where ctid >= pg_catalog.format('(%%s,0)', %(block)s::bigint)::tid
    and ctid < pg_catalog.format('(%%s,0)', %(end)s::bigint)::tid
    and processed_at < %(before)s
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
  where l.created_at < %(before)s and l.push_id is not null
    and not exists (select from public.push_notifications p where p.id = l.push_id)
"""
_COUNT_TELEMETRY = "select pg_catalog.count(*) from public.telemetry_logs where processed_at < %(before)s"

INTERVAL = 3600.0
"""Seconds, about, from one purge by the service to the next."""

SLICES = 24
"""The log is looked over for rows without a push in so many parts, by push id."""

# A peer that is gone without a word is noticed by the kernel, and the lock goes with the connection.
_KEEPALIVE = "keepalives=1 keepalives_idle=60 keepalives_interval=10 keepalives_count=3 connect_timeout=10"


@dataclass(frozen=True, slots=True)
class Purged:
    """Rows deleted, or found to be deleted."""

    pushes: int = 0
    logs: int = 0
    telemetry: int = 0

    def __add__(self, other: Purged) -> Purged:
        return Purged(self.pushes + other.pushes, self.logs + other.logs, self.telemetry + other.telemetry)


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction of a purge."""

    gone: Purged
    share: float
    """How much of the work is done with it, from 0 to 1."""


async def connect(dsn: str) -> Connection:
    """A connection that purges. Raises psycopg.OperationalError."""
    return await psycopg.AsyncConnection.connect(
        make_conninfo(_KEEPALIVE, **conninfo_to_dict(dsn)),
        autocommit=True,
        application_name="push-listener purge",
        prepare_threshold=None,
    )


async def moment(conn: Connection, age: timedelta) -> str:
    """The moment so long ago, by the database's clock and as it writes it: what has not changed since is old."""
    return str((await _row(conn, "select (pg_catalog.now() - %(age)s)::text", age=age))[0])


async def count(conn: Connection, before: str, *, dead: bool, telemetry: bool) -> Purged:
    """What a purge would delete. Reads the logs, and may take its time. Raises psycopg.Error."""
    found = Purged()
    for old in _groups(dead):
        pushes = await _row(conn, sql.SQL(_COUNT_PUSHES).format(old=old), before=before)
        logs = await _row(conn, sql.SQL(_COUNT_LOGS).format(old=old), before=before)
        found += Purged(pushes=pushes[0], logs=logs[0])
    found += Purged(logs=(await _row(conn, _COUNT_ORPHANS, before=before))[0])
    if telemetry:
        found += Purged(telemetry=(await _row(conn, _COUNT_TELEMETRY, before=before))[0])
    return found


async def count_pushes(conn: Connection, before: str, *, dead: bool) -> int:
    """How many pushes a purge would delete. Reads their index only. Raises psycopg.Error."""
    return sum(
        [
            (await _row(conn, sql.SQL(_COUNT_PUSHES).format(old=old), before=before))[0]
            for old in _groups(dead)
        ]
    )


async def pushes(
    conn: Connection, before: str, *, dead: bool, batch: int, expected: int = 0
) -> AsyncIterator[Step]:
    """Deletes pushes that ended before then, with their log rows, the oldest first.

    ``expected`` is how many there are, if a share is to be told. Raises psycopg.errors.ForeignKeyViolation when a
    table of the application refers to one of them, or another psycopg.Error; what was told of stays deleted.
    """
    done = 0
    for old in _groups(dead):
        statement = sql.SQL(_PUSHES).format(old=old)
        start: str | None = "-infinity"
        while start is not None:
            gone, logs, start = await _row(conn, statement, before=before, start=start, limit=batch)
            done += gone
            yield Step(Purged(pushes=gone, logs=logs), min(done / max(expected, 1), 1.0))


async def orphans(
    conn: Connection, before: str, *, batch: int, slices: Sequence[int] = range(SLICES)
) -> AsyncIterator[Step]:
    """Deletes log rows older than that whose push is not there any more.

    Rows that name no push at all are left alone. Raises psycopg.Error.
    """
    for done, number in enumerate(slices):
        after: UUID | None = _edge(number)
        until = _edge(number + 1)
        while after is not None:
            gone, after = await _row(conn, _ORPHANS, before=before, after=after, until=until, limit=batch)
            yield Step(Purged(logs=gone), (done + (after is None)) / len(slices))


async def telemetry(conn: Connection, before: str) -> AsyncIterator[Step]:
    """Deletes rows of ``telemetry_logs`` that were processed before then. Raises psycopg.Error."""
    (blocks,) = await _row(conn, _TELEMETRY_BLOCKS)
    for block in range(0, blocks, _BLOCKS):
        end = block + _BLOCKS
        cursor = await conn.execute(_TELEMETRY, {"block": block, "end": end, "before": before})
        yield Step(Purged(telemetry=cursor.rowcount), min(end / blocks, 1.0))


async def gently(steps: AsyncIterator[Step], rest: float) -> AsyncIterator[Step]:
    """The same, resting after each for ``rest`` times as long as it took."""
    started = time.monotonic()
    async for step in steps:
        yield step
        await asyncio.sleep(rest * (time.monotonic() - started))
        started = time.monotonic()


async def keep(dsn: str, age: timedelta, metrics: Metrics) -> None:
    """Purges about once an ``INTERVAL`` until cancelled, if this process is the one that does.

    That is the one whose connection holds the lock, or each of them while a stranger holds it; the others ask for it as
    often. Raises nothing: pushes must not suffer from whatever goes wrong here.
    """
    wait = _rng.uniform(0.1, 0.5)
    while True:
        await asyncio.sleep(wait * INTERVAL)
        try:
            async with await connect(dsn) as conn:
                while (await _row(conn, _MAY_PURGE, key=LOCK_KEY))[0]:
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


async def _once(conn: Connection, age: timedelta, metrics: Metrics) -> None:
    before = await moment(conn, age)
    gone, loose = Purged(), Purged()
    async for step in gently(pushes(conn, before, dead=False, batch=1000), rest=4.0):
        metrics.purged.labels("push_notifications").inc(step.gone.pushes)
        metrics.purged.labels("push_delivery_logs").inc(step.gone.logs)
        gone += step.gone
    part = [datetime.now(UTC).hour * SLICES // 24]  # so that a day sees the whole log
    async for step in gently(orphans(conn, before, batch=1000, slices=part), rest=4.0):
        metrics.purged.labels("push_delivery_logs").inc(step.gone.logs)
        loose += step.gone
    if gone.pushes or loose.logs:
        log.info("purged", pushes=gone.pushes, logs=gone.logs, logs_without_push=loose.logs)


def _groups(dead: bool) -> list[sql.SQL]:
    return [sql.SQL(_OVER), sql.SQL(_DEAD)] if dead else [sql.SQL(_OVER)]


def _edge(number: int) -> UUID:
    """Where a slice of all ids begins (exclusive)."""
    return UUID(int=min(number * (1 << 128) // SLICES, (1 << 128) - 1))


async def _row(
    conn: Connection, statement: sql.Composed | LiteralString, **values: object
) -> tuple[Any, ...]:
    row = await (await conn.execute(statement, values)).fetchone()
    assert row is not None
    return row
