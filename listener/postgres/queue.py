"""The queue in Postgres: claim, settle, what is due when. All SQL of the hot path is here, none elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

import orjson
import psycopg
import structlog
from psycopg.pq import TransactionStatus
from psycopg.rows import args_row

from listener.log import should_log
from listener.postgres.connect import Connection, Pool
from listener.postgres.errors import ROW_FAULTS, fault_name, is_transient
from listener.postgres.locks import STRANGERS, LockHolder
from listener.push import Decision, Push, Settlement

log = structlog.get_logger(__name__)

# These statements run in sessions whose search_path the application decides about: its triggers on the queue fire in
# them, and may need it; and behind a pooler in transaction mode the sessions are not ours to set. Any role that may
# create functions, operators or types in a schema of that path, such as public, would run its own code as the listener
# if a statement here looked up a name there. Postgres prefers a function or operator that fits the types of the
# arguments exactly, in any schema of the path, to one that needs a cast:
#
# - Functions and relations are named with their schema. (What only looks like a function, coalesce or extract or an
#   unnest of several arrays, is syntax.)
# - Operators have operands for which pg_catalog has exactly that operator, and pg_catalog comes first where several fit
#   equally. A column that an adopted table may have as varchar is cast to text; so is a key of ->>, for an untyped
#   literal is first taken for the type of the other operand. The integer types, and a timestamp and an interval, have
#   their operators for each other, a date and a smallint, or an oid and an integer, have not.
# - Types need no schema: pg_catalog comes before all but pg_temp, and in a session's pg_temp only those who have the
#   rights of that session can create anything.
#
# tests/integration/postgres/test_attacks.py has Postgres resolve every statement among such names.
#
# Two conditions appear in several statements and must read as in the index push_notifications_due, or Postgres
# will not use it: the lane, (case priority::text when 'high' then 0 else 1 end), and which rows wait at all.
#
# Times leave Postgres as seconds, subtracted as numbers: before version 17 it cannot subtract 'infinity'.

_CLAIM = """
with high as materialized (
  select id, next_attempt_at as due_at, 0 as lane
    from public.push_notifications
    where (case priority::text when 'high' then 0 else 1 end) = 0 and next_attempt_at <= pg_catalog.now()
      and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
      and id <> all(%(avoided)s::uuid[])
    order by next_attempt_at
    limit %(most)s
    for update skip locked
), normal as materialized (
  select id, next_attempt_at as due_at, 1 as lane
    from public.push_notifications
    where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at <= pg_catalog.now()
      and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
      and id <> all(%(avoided)s::uuid[])
    order by next_attempt_at
    limit least(%(normal)s::bigint, %(most)s::bigint - (select pg_catalog.count(*) from high))
    for update skip locked
), due as (
  select * from high union all select * from normal
), claimed as (
  update public.push_notifications p
    set status = 'processing',
        next_attempt_at = pg_catalog.now() + pg_catalog.make_interval(secs => %(lease)s),
        claimed_by = %(worker)s,
        -- In an adopted table the two counters may be NULL.
        delivery_attempts = coalesce(p.delivery_attempts, 0) + 1,
        -- Still in somebody's name: the worker died, or its lease ran out.
        lost_claims = coalesce(p.lost_claims, 0) + (p.status::text = 'processing')::integer,
        last_retry_at = case when p.retry_count > 0 then pg_catalog.now() else p.last_retry_at end,
        updated_at = pg_catalog.now()
    from due
    where p.id = due.id
    returning p.id, p.delivery_attempts, coalesce(p.retry_count, 0) as retry_count, p.lost_claims,
      p.device_token, p.topic, p.condition, p.user_id,
      p.title, p.body, p.data, p.channel, p.priority, p.image, p.options, p.collapse_key, p.expires_at,
      greatest(due.due_at, p.created_at) as due_at, due.lane,
      -- octet_length() of a text does not fetch it; a jsonb is measured as text only when it may be large.
      pg_catalog.array_remove(array[
        case when pg_catalog.octet_length(p.device_token::text) > 32768 then 'device_token' end,
        case when pg_catalog.octet_length(p.topic::text) > 32768 then 'topic' end,
        case when pg_catalog.octet_length(p.condition::text) > 32768 then 'condition' end,
        case when pg_catalog.octet_length(p.title::text) > 32768 then 'title' end,
        case when pg_catalog.octet_length(p.body::text) > 32768 then 'body' end,
        case when pg_catalog.octet_length(p.channel::text) > 32768 then 'channel' end,
        case when pg_catalog.octet_length(p.priority::text) > 32768 then 'priority' end,
        case when pg_catalog.octet_length(p.image::text) > 32768 then 'image' end,
        case when pg_catalog.octet_length(p.collapse_key::text) > 32768 then 'collapse_key' end,
        case when pg_catalog.pg_column_size(p.data) > 1000 and pg_catalog.octet_length(p.data::text) > 32768
             then 'data' end,
        case when pg_catalog.pg_column_size(p.options) > 1000 and pg_catalog.octet_length(p.options::text) > 32768
             then 'options' end
      ], null) as oversized
)
select c.id, c.delivery_attempts, c.retry_count, c.lost_claims,
    case when o.fits then c.device_token end,
    case when o.fits then c.topic end,
    case when o.fits then c.condition end,
    c.user_id,
    r.recipients,
    coalesce(a.accepted_before, 0),
    case when o.fits then c.title end,
    case when o.fits then c.body end,
    case when o.fits then c.data::text end,
    case when o.fits then c.channel end,
    case when o.fits then c.priority end,
    case when o.fits then c.image end,
    case when o.fits then c.options::text end,
    case when o.fits then c.collapse_key end,
    nullif(extract(epoch from c.expires_at)::float8, 'infinity'),
    nullif(extract(epoch from c.expires_at)::float8, 'infinity') - extract(epoch from pg_catalog.now())::float8,
    extract(epoch from pg_catalog.now())::float8 - extract(epoch from c.due_at)::float8,
    case when not o.fits then pg_catalog.array_to_string(c.oversized, ', ') end
  from claimed c
  cross join lateral (
    select pg_catalog.cardinality(c.oversized) = 0 as fits,
           c.device_token is null and c.topic is null and c.condition is null
             and c.user_id is not null as to_user
  ) o
  left join lateral (
    -- Devices that accepted this push in an earlier attempt, or that FCM called dead, do not get it again.
    select pg_catalog.json_agg(pg_catalog.json_build_array(r.token, r.platform))::text as recipients
      from public.push_recipients r
      where o.to_user and r.user_id = c.user_id
        and (c.delivery_attempts = 1 or not exists (
          select from public.push_delivery_logs l
            where l.push_id = c.id and l.device_token::text = r.token::text
              and (l.status::text = 'sent' or l.details ->> 'outcome'::text = 'drop_target')))
  ) r on o.to_user
  left join lateral (
    -- Here, and not as the condition of the join: that is looked at when the log has been read already.
    select pg_catalog.count(*)::integer as accepted_before
      from public.push_delivery_logs l
      where o.to_user and c.delivery_attempts > 1 and l.push_id = c.id and l.status::text = 'sent'
  ) a on true
  order by c.lane, c.due_at
"""

# The row that a claim of one takes.
_FIRST = """
select id
  from public.push_notifications
  where next_attempt_at <= pg_catalog.now()
    and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
    and id <> all(%(avoided)s::uuid[])
  order by (case priority::text when 'high' then 0 else 1 end), next_attempt_at
  limit 1
  for update skip locked
"""

# The fence: a row is written only while this worker holds it, for the attempt it made. A settle that is
# repeated, because its answer was lost, finds the row done already, and then writes no second log row either.
#
# Arrays go out in binary (%b), which costs psycopg a tenth of what it costs to write and escape them as text.
#
# What the fence compares with stands in the rows of the result. Were it constants, Postgres would believe that hardly
# any row passes, and on a table that it does not know yet it would compare every row with every result.
#
# lock_timeout is set inside the statement because a transaction pooler loses SET. The CTE is MATERIALIZED so that the
# timeout applies before the first row lock.
_SETTLE = """
with result as materialized (
  select r.*, %(worker)s::integer as worker, 'processing' as held
    from (select pg_catalog.set_config('lock_timeout', '200ms', true)) as patience,
      unnest(%(ids)b::uuid[], %(attempts)b::integer[], %(statuses)b::text[], %(delays)b::float8[],
             %(tries)b::boolean[], %(codes)b::text[], %(reasons)b::text[], %(message_ids)b::text[])
        as r(id, attempt, status, delay, uses_try, code, reason, message_id)
), settled as (
  update public.push_notifications p
    -- A receipt may have come before FCM's answer was written down.
    set status = case when r.status = 'sent' and p.delivered_at is not null then 'delivered'
                      else r.status end,
        next_attempt_at = pg_catalog.now() + pg_catalog.make_interval(secs => r.delay),
        retry_count = coalesce(p.retry_count, 0) + r.uses_try::integer,
        error_code = r.code,
        last_error = r.reason,
        fcm_message_id = coalesce(r.message_id, p.fcm_message_id),
        sent_at = case when r.status = 'sent' then pg_catalog.now() else p.sent_at end,
        updated_at = pg_catalog.now()
    from result r
    where p.id = r.id and p.claimed_by = r.worker and p.delivery_attempts = r.attempt and p.status::text = r.held
    returning p.id
), logged as (
  insert into public.push_delivery_logs (push_id, device_token, status, details)
  select l.push_id, l.token, l.status, l.details::jsonb
    from unnest(%(log_ids)b::uuid[], %(log_tokens)b::text[], %(log_statuses)b::text[], %(log_details)b::text[])
      as l(push_id, token, status, details)
    -- Row by row: another worker may have claimed some of them again by now.
    where not %(again)s or not exists (
      select from public.push_delivery_logs o
        where o.push_id = l.push_id and o.device_token::text is not distinct from l.token
          and o.details ->> 'attempt'::text = l.details::jsonb ->> 'attempt'::text)
)
select pg_catalog.count(*) from settled
"""

# A row that SKIP LOCKED skips is locked by another transaction; a row that no longer exists is not.
_LOCKED = """
with free as materialized (
  select id from public.push_notifications where id = any(%(ids)s::uuid[])
    for no key update skip locked
)
select id from public.push_notifications where id = any(%(ids)s::uuid[]) and id not in (select id from free)
"""

# Held by this worker as the database has it, and not as the worker does: the answer to a claim was lost. With the lane,
# the index leads past all that is due already, however much that is.
_RELEASE = """
update public.push_notifications
  set status = 'pending', next_attempt_at = pg_catalog.now(), updated_at = pg_catalog.now()
  where (case priority::text when 'high' then 0 else 1 end) in (0, 1) and next_attempt_at > pg_catalog.now()
    and status::text = 'processing' and claimed_by = %(worker)s and id <> all(%(held)s::uuid[])
"""

_DISABLE = """
select public.push_disable_token(token, code)
  from unnest(%(tokens)s::text[], %(codes)s::text[]) as d(token, code)
"""

_EARLIEST: LiteralString = """
select extract(epoch from least(
    (select next_attempt_at from public.push_notifications
       where (case priority::text when 'high' then 0 else 1 end) = 0
         and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
         and id <> all(%(avoided)s::uuid[])
       order by next_attempt_at limit 1),
    (select next_attempt_at from public.push_notifications
       where (case priority::text when 'high' then 0 else 1 end) = 1
         and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
         and id <> all(%(avoided)s::uuid[])
       order by next_attempt_at limit 1)
  ))::float8 - extract(epoch from pg_catalog.clock_timestamp())::float8
"""

# What a worker asks when it has heard nothing for a while: also who holds its locks, and whether its own row is there.
_SWEEP: LiteralString = (
    """
with holders as materialized (
  select * from push_listener.lock_holders where lock in ('polling', 'liveness')
)
select
  exists (
    select from holders a
      where a.lock = 'polling' and a.exclusive and not exists (  -- this worker itself
        select from holders l
          where l.lock = 'liveness' and l.key = %(worker)s and l.granted and l.is_ours and l.pid = a.pid)),
  exists (select from push_listener.workers where id = %(worker)s),
  (select coalesce(pg_catalog.json_agg(s), '[]')::text from ("""  # noqa: S608  # constants
    + STRANGERS
    + """) s),
  ("""
    + _EARLIEST
    + ")"
)

# What Postgres knows of the table may be from a time when all of it waited. It would then rather read all of it.
BY_INDEX = "set local enable_seqscan = off"

_DEPTH = """
select status, pg_catalog.count(*), pg_catalog.count(*) filter (where next_attempt_at <= pg_catalog.now()),
    -- A row scheduled for a time before its own insertion has waited since the latter.
    extract(epoch from pg_catalog.now())::float8
      - extract(epoch from pg_catalog.min(greatest(next_attempt_at, created_at))
                           filter (where next_attempt_at <= pg_catalog.now()))::float8
  from public.push_notifications
  where next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
  group by status
"""

_AVOIDED_S = 600.0


@dataclass(frozen=True, slots=True)
class Depth:
    """What waits in the queue, by status."""

    counts: dict[str, int]
    due: int
    """Rows that could be taken now."""
    oldest_due: float
    """Seconds for which the row that has waited longest has been due; 0 when none is."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a worker finds out when it has heard nothing for a while."""

    earliest: float | None
    """Seconds until the first row is due (negative: it is); None: none waits."""
    silenced: bool
    """Whether anybody but this worker holds the lock AWAKE, or waits for it, so that inserts do not ring."""
    registered: bool
    """Whether this worker's row is still there."""
    strangers: Sequence[LockHolder]
    """Who holds locks of push-listener and is no part of it."""


class Queue:
    """One worker's hands on ``push_notifications``.

    Every method raises ``psycopg.Error`` (``OperationalError`` when the database is away) or
    ``psycopg_pool.PoolTimeout``; none retries by itself.
    """

    def __init__(self, pool: Pool, *, worker_id: int, lease: float) -> None:
        self._pool = pool
        self._worker = worker_id
        self._lease = lease
        self._avoided: dict[UUID, float] = {}  # until when, in monotonic seconds
        self._not_disabled = 0  # times in a row

    @property
    def worker_id(self) -> int:
        """What ``claimed_by`` holds for the rows of this worker."""
        return self._worker

    async def claim(self, most: int, normal: int | None = None, but: Sequence[UUID] = ()) -> list[Push]:
        """Takes up to ``most`` due rows under a lease, high priority first, then by due time, and none of ``but``.

        Of normal priority at most ``normal``. Fewer, or none, when a row among them cannot be claimed: that is found
        out, and then avoided.
        """
        normal = most if normal is None else normal
        try:
            async with self._pool.connection() as conn:
                return await self._take(conn, most, normal, but)
        except ROW_FAULTS as error:
            if is_transient(error):
                raise
            if most > 1:
                return await self.claim(most // 2, (normal + 1) // 2, but)
            return await self._take_first(but)

    def avoid(self, push_id: UUID) -> None:
        """Leaves a row alone for ten minutes: it cannot be claimed or settled, and must not keep others from it."""
        self._avoided[push_id] = time.monotonic() + _AVOIDED_S

    async def _take(self, conn: Connection, most: int, normal: int, but: Sequence[UUID]) -> list[Push]:
        cursor = conn.cursor(binary=True, row_factory=args_row(_push))
        await cursor.execute(
            _CLAIM,
            {
                "most": most,
                "normal": normal,
                "lease": self._lease,
                "worker": self._worker,
                "avoided": self._avoid_now(but),
            },
        )
        return await cursor.fetchall()

    async def _take_first(self, but: Sequence[UUID]) -> list[Push]:
        first = None
        try:
            async with self._pool.connection() as conn, conn.transaction():
                first = await (await conn.execute(_FIRST, {"avoided": self._avoid_now(but)})).fetchone()
                return await self._take(conn, 1, 1, but)
        except ROW_FAULTS as error:
            if first is None or is_transient(error):
                raise
            async with self._pool.connection() as conn:
                await self._take(conn, 0, 0, but)  # raises where no row is to blame
            push_id = UUID(str(first[0]))
            log.error("row cannot be claimed", push_id=str(push_id), error=fault_name(error))
            self.avoid(push_id)
            return []

    def _avoid_now(self, but: Sequence[UUID]) -> list[UUID]:
        if self._avoided:
            now = time.monotonic()
            self._avoided = {push_id: until for push_id, until in self._avoided.items() if until > now}
        return [*self._avoided, *but]

    async def settle(self, batch: Sequence[Settlement], *, again: bool = False) -> int:
        """Writes rows, log rows and dead tokens in one transaction; returns how many rows were still ours.

        Raises psycopg.errors.LockNotAvailable when a row is locked for longer than a moment.

        ``again``: an earlier try may have been committed without our hearing of it. A batch of none fails only where
        no row is to blame.
        """
        statuses, delays, tries, codes, reasons, message_ids = (
            map(list, zip(*(s.decision for s in batch), strict=True))
            if batch
            else [[]] * len(Decision._fields)
        )
        logs = [(s, line) for s in batch for line in s.logs]
        dead = [pair for s in batch for pair in s.dead_tokens]
        values = {
            "worker": self._worker,
            "again": again,
            "ids": [s.push_id for s in batch],
            "attempts": [s.attempt for s in batch],
            "statuses": [str(status) for status in statuses],
            "delays": delays,
            "tries": tries,
            "codes": codes,
            "reasons": reasons,
            "message_ids": message_ids,
            "log_ids": [s.push_id for s, _ in logs],
            "log_tokens": [line.token for _, line in logs],
            "log_statuses": [line.status for _, line in logs],
            "log_details": [orjson.dumps(line.details).decode() for _, line in logs],
        }
        async with self._pool.connection() as conn:
            if not dead:
                cursor = await conn.execute(_SETTLE, values)
            else:
                async with conn.transaction():
                    cursor = await conn.execute(_SETTLE, values)
                    await self._disable(conn, dead)
            row = await cursor.fetchone()
        return int(str(row[0])) if row else 0

    async def locked(self, ids: Sequence[UUID]) -> set[UUID]:
        """Which of these rows another transaction has locked."""
        async with self._pool.connection() as conn:
            cursor = await conn.execute(_LOCKED, {"ids": list(ids)})
            return {UUID(str(push_id)) for (push_id,) in await cursor.fetchall()}

    async def _disable(self, conn: Connection, dead: list[tuple[str, str]]) -> None:
        """The function may be the application's, and fail as it likes: what FCM said is written down all the same."""
        try:
            async with conn.transaction():  # a savepoint
                await conn.execute(_DISABLE, {"tokens": [t for t, _ in dead], "codes": [c for _, c in dead]})
        except psycopg.Error as error:
            if conn.info.transaction_status is not TransactionStatus.INTRANS:
                raise  # the connection is gone, and with it the results
            self._not_disabled += 1
            if should_log(self._not_disabled):
                log.error(
                    "dead tokens not disabled",
                    error=fault_name(error),
                    tokens=len(dead),
                    times=self._not_disabled,
                )
        else:
            self._not_disabled = 0

    async def release(self, held: Sequence[UUID]) -> int:
        """Puts back what this worker has claimed without knowing, all but ``held``; returns how many rows that was."""
        async with self._pool.connection() as conn:
            cursor = await conn.execute(_RELEASE, {"worker": self._worker, "held": list(held)})
        return cursor.rowcount

    async def earliest(self, but: Sequence[UUID] = ()) -> float | None:
        """Seconds until the first row but these is due (negative: it is), by the database's clock; None: none waits."""
        async with self._pool.connection() as conn:
            row = await (await conn.execute(_EARLIEST, {"avoided": self._avoid_now(but)})).fetchone()
        return None if row is None or row[0] is None else float(str(row[0]))

    async def sweep(self, but: Sequence[UUID] = ()) -> Sweep:
        """The same as ``earliest``, and what may keep this worker from hearing of it."""
        values = {"worker": self._worker, "avoided": self._avoid_now(but)}
        async with self._pool.connection() as conn:
            row = await (await conn.execute(_SWEEP, values)).fetchone()
        assert row is not None
        silenced, registered, strangers, earliest = row
        return Sweep(
            None if earliest is None else float(str(earliest)),
            bool(silenced),
            bool(registered),
            [LockHolder(**each) for each in orjson.loads(str(strangers))],
        )

    async def depth(self) -> Depth:
        """Counts what waits. Reads the index of waiting rows and those rows, never the history."""
        async with self._pool.connection() as conn:
            cursor = await conn.execute(f"{BY_INDEX}; {_DEPTH}".encode(), prepare=False)
            cursor.nextset()
            rows = await cursor.fetchall()
        counts = {"pending": 0, "processing": 0, "failed": 0}
        due, oldest = 0, 0.0
        for status, count, due_now, age in rows:
            counts[str(status)] = int(str(count))
            due += int(str(due_now))
            oldest = max(oldest, float(str(age or 0)))
        return Depth(counts, due, oldest)


def _push(*columns: Any) -> Push:
    """A row of _CLAIM, whose columns are in the order of the fields."""
    push = Push(*columns)
    found = orjson.loads(columns[8]) if columns[8] else []
    push.recipients = [(token, platform) for token, platform in found]
    return push
