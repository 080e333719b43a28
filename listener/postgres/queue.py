"""The queue in Postgres: claim, settle, what is due when. All SQL of the hot path is here, none elsewhere."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString, cast
from uuid import UUID

import orjson
import psycopg
import structlog
from psycopg.pq import TransactionStatus
from psycopg.rows import args_row

from listener.log import should_log
from listener.postgres.connect import Connection, Pool
from listener.postgres.locks import STRANGERS, LockHolder
from listener.push import Push
from listener.sending.retry import Decision

log = structlog.get_logger(__name__)

CHANNEL = "push_listener"
"""The NOTIFY channel that the triggers of db/migrations ring."""

LIVENESS_CLASS = 1_886_745_448
"""First key of the advisory locks that workers hold while they live ("push"); the second is the worker's id."""

AWAKE = (1_886_745_449, 0)
"""The advisory lock that silences the bell: held, exclusively, by a listener that is awake."""

ROLLBACK_LOCK = 7_308_332_045_000_002
"""The advisory lock that ``migrate --down`` holds: no worker begins meanwhile."""

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
  select * from push_listener.lock_holders where lock in ('awake', 'liveness')
)
select
  exists (
    select from holders a
      where a.lock = 'awake' and a.exclusive and not exists (  -- this worker itself
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

# Workers whose liveness lock can mean something, and whether a worker holds it: any login may take such a lock.
_PEERS = """
select w.id, exists (
    select from push_listener.lock_holders h
      where h.lock = 'liveness' and h.key = w.id and h.granted and h.is_ours)
  from push_listener.workers w
  where w.stopped_at is null and w.guarded and w.id <> %(worker)s
"""

# Leased rows are due later, so the index leads past all that is due already, however much that is; and the lease is
# longer than the wait before most retries, so it is read from its far end.
_PEERS_HOLD = """
select exists (
  (select from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 0 and next_attempt_at > pg_catalog.now()
       and next_attempt_at <= pg_catalog.now() + pg_catalog.make_interval(secs => %(lease)s)
       and status::text = 'processing' and claimed_by <> %(worker)s
     order by next_attempt_at desc limit 1)
  union all
  (select from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at > pg_catalog.now()
       and next_attempt_at <= pg_catalog.now() + pg_catalog.make_interval(secs => %(lease)s)
       and status::text = 'processing' and claimed_by <> %(worker)s
     order by next_attempt_at desc limit 1))
"""

# A worker is dead if its liveness lock is free (this transaction then holds the lock until its end), or if only
# strangers hold the lock, for which a rescue must not wait. Its row in "workers" is locked before that is asked: no
# other rescue works on it meanwhile, and a worker that comes back writes to that row before it claims anything.
_RESCUE = """
with suspects as materialized (
  select w.id
    from push_listener.workers w
    where w.id = any(%(suspects)s::integer[]) and w.guarded and w.stopped_at is null
    for update skip locked
), dead as materialized (
  select s.id
    from suspects s
    where case when pg_catalog.pg_try_advisory_xact_lock(%(class)s, s.id) then true
               else not push_listener.is_alive(s.id) end
), buried as (
  update push_listener.workers w set stopped_at = pg_catalog.now(), lost = true from dead where w.id = dead.id
), rescued as (
  -- To the front of the queue: what a worker may have died of is soon tried again, with little beside it.
  update public.push_notifications p
    set status = 'pending', next_attempt_at = least(p.created_at, pg_catalog.now()),
        lost_claims = coalesce(p.lost_claims, 0) + 1, updated_at = pg_catalog.now()
    from dead
    where p.claimed_by = dead.id and p.status::text = 'processing'
      -- As above; where the lease has ended they can be claimed already.
      and (case p.priority::text when 'high' then 0 else 1 end) in (0, 1) and p.next_attempt_at > pg_catalog.now()
    returning p.id
)
select coalesce((select pg_catalog.array_agg(id) from dead), '{}'), (select pg_catalog.count(*) from rescued)
"""

# Whether any session, a worker's or not, holds the lock or waits for it: a wait, too, keeps inserts from taking it in
# shared mode.
_SILENCED = """
select exists (
  select from pg_catalog.pg_locks
    where locktype = 'advisory' and (classid, objid, objsubid) = (%s::oid, %s::oid, 2)
      and mode = 'ExclusiveLock'
      and database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database()))
"""

# Who has written a row holds this lock until after that row can be seen, or never will be; a prepared transaction too.
_WRITERS = """
select distinct virtualtransaction
  from pg_catalog.pg_locks
  where locktype = 'relation' and relation = 'public.push_notifications'::regclass::oid and mode = 'RowExclusiveLock'
    and database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
"""

_LOST_LATELY = """
select pg_catalog.count(*) from push_listener.workers where lost and stopped_at > pg_catalog.now() - interval '1 hour'
"""

# How much of FCM's quota all may use, for how many seconds that has been so, and how many other workers live.
_FLEET = """
select r.part, extract(epoch from pg_catalog.clock_timestamp() - r.lowered_at)::float8, (
    select pg_catalog.count(distinct w.id)
      from push_listener.lock_holders h
      join push_listener.workers w on w.id = h.key and w.stopped_at is null
      where h.lock = 'liveness' and w.id <> %(worker)s and h.granted and h.is_ours)
  from (select 1) one
  left join push_listener.rate r on true
"""

# At most once a second for all workers together, and never to more than the part that has come back by now. A time in
# the future is from before the clock was put back, and is ignored.
_LOWER = """
update push_listener.rate
  set part = case when lowered_at > pg_catalog.clock_timestamp() then %(part)s::float8
                  else least(%(part)s::float8,
                             part + extract(epoch from pg_catalog.clock_timestamp() - lowered_at)::float8
                                    / %(recovery)s::float8) end,
      lowered_at = pg_catalog.clock_timestamp()
  where lowered_at not between pg_catalog.clock_timestamp() - interval '1 second'
                           and pg_catalog.clock_timestamp()
"""

_SCHEMA_VERSION = "select coalesce(pg_catalog.max(version), 0) from push_listener.migrations"
_DRIFT = "select finding from push_listener.drift() order by finding limit 20"

# Any role that may create schemas could make one of this name first, with a view as its table of migrations, and
# what is in it would run with the rights of the session that reads it. So nothing in it is read before its owner is
# known to be one who could do as much without it: a superuser, the owner of the database, or a role that has the rights
# of this session; and, for a listener with rights of its own, the owner of the queue.
STRANGERS_SCHEMA: LiteralString = """
select o.rolname::text
  from pg_catalog.pg_namespace n
  join pg_catalog.pg_roles o on o.oid = n.nspowner
  join pg_catalog.pg_roles me on me.rolname = current_user
  join pg_catalog.pg_database d on d.datname = pg_catalog.current_database()
  where n.nspname = 'push_listener'
    and not (o.rolsuper or o.oid = d.datdba or pg_catalog.pg_has_role(o.oid, me.oid, 'usage'))
    and not (not me.rolsuper
             and coalesce(pg_catalog.pg_has_role(pg_catalog.to_regrole('push_listener'), 'usage'), false)
             and exists (select from pg_catalog.pg_class q
                           where q.oid = pg_catalog.to_regclass('public.push_notifications')::oid
                             and q.relowner = o.oid))
"""

# The way back holds the lock. A stranger that holds it keeps no worker from beginning.
_MAY_BEGIN: LiteralString = """
select case when pg_catalog.pg_try_advisory_xact_lock_shared(%(rollback)s::bigint) then true
            else not exists (select from push_listener.lock_holders where lock = 'rollback' and granted and is_ours) end
"""
_REGISTER: LiteralString = (
    "insert into push_listener.workers (name) select %(name)s::text where (" + _MAY_BEGIN + ") returning id"
)
_REGISTER_AS: LiteralString = (
    "insert into push_listener.workers (id, name) overriding system value "
    "select %(id)s::integer, %(name)s::text where (" + _MAY_BEGIN + ") on conflict do nothing returning id"
)
_SIGN_OFF = "update push_listener.workers set stopped_at = pg_catalog.now() where id = %s"


_AVOIDED_S = 600.0

_LEAST_UNFORESEEN = 1 << 30
_TRIES_OF_AN_ID = 3

ROW_FAULTS = (psycopg.Error, ValueError, TypeError)
"""What one row may be to blame for, where it is not ``is_transient``: its values, which are ours to encode and
Postgres' to store, or the application's own triggers on it, which raise what they like. Other rows must not suffer
for it."""

# Connections, transactions, resources, an operator, files; a lock not to be had; what goes wrong inside Postgres, or in
# a pooler that finds no connection. But XX001 and XX002 are damaged data: those of one row, and they stay so.
_PASSING = ("08", "25", "40", "53", "57", "58", "55P03", "55006", "XX000")


@dataclass(slots=True)
class LogLine:
    """One row of ``push_delivery_logs``: one attempt at one target."""

    token: str | None
    status: str
    details: dict[str, object]
    """With ``attempt``, small, and without the character NUL, which Postgres cannot store."""


@dataclass(slots=True)
class Settlement:
    """Everything that one attempt at one row leaves behind."""

    push_id: UUID
    attempt: int
    decision: Decision
    logs: list[LogLine] = field(default_factory=list)
    dead_tokens: list[tuple[str, str]] = field(default_factory=list)
    """(token, code) of registration tokens that FCM reported dead."""


@dataclass(frozen=True, slots=True)
class Depth:
    """What waits in the queue, by status."""

    counts: dict[str, int]
    due: int
    """Rows that could be taken now."""
    oldest_due: float
    """Seconds for which the row that has waited longest has been due; 0 when none is."""


@dataclass(frozen=True, slots=True)
class QuotaState:
    """All live workers."""

    workers: int
    """How many there are, this one included."""
    part: float
    """Of FCM's quota, which all together might use when it was last lowered."""
    age: float
    """Seconds since then."""


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

    async def peers(self) -> list[tuple[int, bool]]:
        """The other workers that have not ended by their own will, and whether each is alive."""
        async with self._pool.connection() as conn:
            cursor = await conn.execute(_PEERS, {"worker": self._worker})
            return [(int(str(peer)), bool(alive)) for peer, alive in await cursor.fetchall()]

    async def lost_lately(self) -> int:
        """How many workers have died in the last hour."""
        async with self._pool.connection() as conn:
            row = await (await conn.execute(_LOST_LATELY)).fetchone()
        return int(str(row[0])) if row else 0

    async def peers_hold_rows(self) -> bool:
        """Whether another worker has claimed rows (with a lease no longer than ours) and not settled them yet."""
        async with self._pool.connection() as conn:
            cursor = await conn.execute(_PEERS_HOLD, {"lease": self._lease, "worker": self._worker})
            row = await cursor.fetchone()
        return bool(row and row[0])

    async def is_silenced(self) -> bool:
        """Whether a listener is awake, or a stranger has its lock, so that inserts do not ring."""
        async with self._pool.connection() as conn:
            row = await (await conn.execute(_SILENCED, AWAKE)).fetchone()
        return bool(row and row[0])

    async def writers(self) -> set[str]:
        """The transactions that may have rows in the queue which nobody else can see yet."""
        async with self._pool.connection() as conn:
            return {str(writer) for (writer,) in await (await conn.execute(_WRITERS)).fetchall()}

    async def rescue(self, suspects: Collection[int]) -> tuple[list[int], int]:
        """Puts the rows of those who are dead indeed back into the queue, no try used; returns who, and how many."""
        async with self._pool.connection() as conn:
            cursor = await conn.execute(_RESCUE, {"class": LIVENESS_CLASS, "suspects": list(suspects)})
            dead, rows = await cursor.fetchone() or ([], 0)
        return list(cast(list[int], dead)), int(str(rows))

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

    async def fleet(self) -> QuotaState:
        """Who else lives, and how far the rate has been lowered."""
        async with self._pool.connection() as conn:
            cursor = await conn.execute(_FLEET, {"worker": self._worker})
            part, age, others = await cursor.fetchone() or (None, None, 0)
        if part is None or float(str(age)) < 0.0:  # from before the clock was put back
            part, age = 1.0, 0.0
        return QuotaState(1 + int(str(others)), float(str(part)), float(str(age)))

    async def lower(self, part: float, recovery: float) -> None:
        """Lowers the rate for all workers to a part of the quota, which comes back at one part in ``recovery`` seconds.

        Not if that has just been done.
        """
        async with self._pool.connection() as conn:
            await conn.execute(_LOWER, {"part": part, "recovery": recovery})

    async def sign_off(self) -> None:
        """Notes that this worker ended by its own will."""
        async with self._pool.connection() as conn:
            await conn.execute(_SIGN_OFF, (self._worker,))


class StrangersSchema(Exception):
    """The schema push_listener belongs to a role that could run code with the rights of this session through it."""

    def __init__(self, owner: str) -> None:
        super().__init__(
            f"the schema push_listener belongs to the role {owner}, and what is in it would run with your rights, "
            f"which are more than its own. If {owner} has migrated this database, run this as {owner}. If not, drop "
            "the schema"
        )


async def schema_version(pool: Pool) -> int:
    """The newest migration that was applied.

    Raises psycopg.errors.UndefinedTable when none was, or StrangersSchema.
    """
    async with pool.connection() as conn:
        stranger = await (await conn.execute(STRANGERS_SCHEMA)).fetchone()
        if stranger is not None:
            raise StrangersSchema(str(stranger[0]))
        row = await (await conn.execute(_SCHEMA_VERSION)).fetchone()
    return int(str(row[0])) if row else 0


async def drift(pool: Pool) -> list[str]:
    """What differs from the privileges and policies that migrate sets, in words; the first twenty findings."""
    async with pool.connection() as conn:
        rows = await (await conn.execute(_DRIFT)).fetchall()
    return [str(finding) for (finding,) in rows]


class RollingBack(Exception):
    """``push-listener migrate --down`` is at work, and no worker may begin."""


async def register(pool: Pool, name: str, *, unforeseen: bool = False) -> int:
    """Makes this process known in ``push_listener.workers``; returns its id, for ``claimed_by``.

    ``unforeseen``: not the next id, whose liveness lock a stranger may hold already, but a random one. There are a
    billion of them, and Postgres has memory for some ten thousand locks. Raises RollingBack.
    """
    values: dict[str, object] = {"name": name, "rollback": ROLLBACK_LOCK}
    async with pool.connection() as conn:
        for _ in range(_TRIES_OF_AN_ID if unforeseen else 0):
            values["id"] = _LEAST_UNFORESEEN + secrets.randbelow(_LEAST_UNFORESEEN)
            row = await (await conn.execute(_REGISTER_AS, values)).fetchone()
            if row is not None:
                return int(str(row[0]))
        row = await (await conn.execute(_REGISTER, values)).fetchone()
    if row is None:
        raise RollingBack
    return int(str(row[0]))


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may succeed later; otherwise it will not, because of a row or of the statement."""
    if not isinstance(error, psycopg.Error):
        return isinstance(error, TimeoutError)
    sqlstate = _sqlstate(error)
    if sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return sqlstate.startswith(_PASSING)


def fault_name(error: BaseException | None) -> str:
    """The kind of an error, without its text, which may quote values."""
    sqlstate = _sqlstate(error) if isinstance(error, psycopg.Error) else None
    return f"SQLSTATE {sqlstate}" if sqlstate else type(error).__name__


def _sqlstate(error: psycopg.Error) -> str | None:
    return error.diag.sqlstate or error.sqlstate  # the latter knows no codes of an application's own


def _push(*columns: Any) -> Push:
    """A row of _CLAIM, whose columns are in the order of the fields."""
    push = Push(*columns)
    found = orjson.loads(columns[8]) if columns[8] else []
    push.recipients = [(token, platform) for token, platform in found]
    return push
