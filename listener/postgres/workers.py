"""The workers of one database: who lives, whose rows come back, and what they share of FCM's quota."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import LiteralString, cast

from listener.postgres.connect import Pool
from listener.postgres.locks import LIVENESS_CLASS, POLLING_LOCK, ROLLBACK_LOCK

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
select r.fraction, extract(epoch from pg_catalog.clock_timestamp() - r.reduced_at)::float8, (
    select pg_catalog.count(distinct w.id)
      from push_listener.lock_holders h
      join push_listener.workers w on w.id = h.key and w.stopped_at is null
      where h.lock = 'liveness' and w.id <> %(worker)s and h.granted and h.is_ours)
  from (select 1) one
  left join push_listener.shared_quota r on true
"""

# At most once a second for all workers together, and never to more than the part that has come back by now. A time in
# the future is from before the clock was put back, and is ignored.
_LOWER = """
update push_listener.shared_quota
  set fraction = case when reduced_at > pg_catalog.clock_timestamp() then %(part)s::float8
                  else least(%(part)s::float8,
                             fraction + extract(epoch from pg_catalog.clock_timestamp() - reduced_at)::float8
                                    / %(recovery)s::float8) end,
      reduced_at = pg_catalog.clock_timestamp()
  where reduced_at not between pg_catalog.clock_timestamp() - interval '1 second'
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


_LEAST_UNFORESEEN = 1 << 30
_TRIES_OF_AN_ID = 3


@dataclass(frozen=True, slots=True)
class QuotaState:
    """All live workers."""

    workers: int
    """How many there are, this one included."""
    part: float
    """Of FCM's quota, which all together might use when it was last lowered."""
    age: float
    """Seconds since then."""


class Workers:
    """What one worker asks about the others.

    Every method raises ``psycopg.Error`` (``OperationalError`` when the database is away) or
    ``psycopg_pool.PoolTimeout``; none retries by itself.
    """

    def __init__(self, pool: Pool, *, worker_id: int, lease: float) -> None:
        self._pool = pool
        self.worker_id = worker_id
        """The id of this worker: ``claimed_by`` in its rows."""
        self._lease = lease

    async def peers(self) -> list[tuple[int, bool]]:
        """The other workers that have not ended by their own will, and whether each is alive."""
        async with self._pool.connection() as conn:
            cursor = await conn.execute(_PEERS, {"worker": self.worker_id})
            return [(int(str(peer)), bool(alive)) for peer, alive in await cursor.fetchall()]

    async def lost_lately(self) -> int:
        """How many workers have died in the last hour."""
        async with self._pool.connection() as conn:
            row = await (await conn.execute(_LOST_LATELY)).fetchone()
        return int(str(row[0])) if row else 0

    async def peers_hold_rows(self) -> bool:
        """Whether another worker has claimed rows (with a lease no longer than ours) and not settled them yet."""
        async with self._pool.connection() as conn:
            cursor = await conn.execute(_PEERS_HOLD, {"lease": self._lease, "worker": self.worker_id})
            row = await cursor.fetchone()
        return bool(row and row[0])

    async def is_polling_locked(self) -> bool:
        """Whether a listener is awake, or a stranger has its lock, so that inserts do not ring."""
        async with self._pool.connection() as conn:
            row = await (await conn.execute(_SILENCED, POLLING_LOCK)).fetchone()
        return bool(row and row[0])

    async def open_writers(self) -> set[str]:
        """The transactions that may have rows in the queue which nobody else can see yet."""
        async with self._pool.connection() as conn:
            return {str(writer) for (writer,) in await (await conn.execute(_WRITERS)).fetchall()}

    async def rescue(self, suspects: Collection[int]) -> tuple[list[int], int]:
        """Puts the rows of those who are dead indeed back into the queue, no try used; returns who, and how many."""
        async with self._pool.connection() as conn:
            cursor = await conn.execute(_RESCUE, {"class": LIVENESS_CLASS, "suspects": list(suspects)})
            dead, rows = await cursor.fetchone() or ([], 0)
        return list(cast(list[int], dead)), int(str(rows))

    async def quota_state(self) -> QuotaState:
        """Who else lives, and how far the rate has been lowered."""
        async with self._pool.connection() as conn:
            cursor = await conn.execute(_FLEET, {"worker": self.worker_id})
            part, age, others = await cursor.fetchone() or (None, None, 0)
        if part is None or float(str(age)) < 0.0:  # from before the clock was put back
            part, age = 1.0, 0.0
        return QuotaState(1 + int(str(others)), float(str(part)), float(str(age)))

    async def reduce_quota(self, part: float, recovery: float) -> None:
        """Lowers the rate for all workers to a part of the quota, which comes back at one part in ``recovery`` seconds.

        Not if that has just been done.
        """
        async with self._pool.connection() as conn:
            await conn.execute(_LOWER, {"part": part, "recovery": recovery})

    async def sign_off(self) -> None:
        """Notes that this worker ended by its own will."""
        async with self._pool.connection() as conn:
            await conn.execute(_SIGN_OFF, (self.worker_id,))


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
