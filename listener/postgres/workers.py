"""The workers of one database: which are alive, whose rows are rescued, and the quota of FCM that they share."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID, uuid4

from psycopg.rows import class_row, scalar_row

from listener.postgres.connect import Pool, fetch_value
from listener.postgres.locks import LIVENESS_CLASS, ROLLBACK_LOCK
from listener.postgres.put_back import put_back
from listener.postgres.statements import load
from listener.postgres.text import storable

_PEERS_HOLD_ROWS = load(__file__, "peers_hold_rows")
_RESCUE = load(__file__, "rescue")
_QUOTA_STATE = load(__file__, "quota_state")
_REDUCE_QUOTA = load(__file__, "reduce_quota")
STRANGERS_SCHEMA = load(__file__, "strangers_schema")
"""Returns the owner of the schema push_listener if nothing in that schema may be read, else no row."""

# Only a worker that is "guarded" has held its liveness lock. Any login may take such a lock, so the holder counts only
# if it is one of ours.
_PEERS = """
select w.id, exists (
    select from push_listener.lock_holders h
      where h.lock = 'liveness' and h.key = w.id and h.granted and h.is_ours)
  from push_listener.workers w
  where w.stopped_at is null and w.guarded and w.id <> %(worker)s
"""

# A session that waits for the lock counts as well: its wait keeps the triggers from taking the lock in shared mode.
_POLLING_LOCKED = """
select exists (select from push_listener.lock_holders where lock = 'polling' and exclusive)
"""

# A transaction that has written a row holds this lock until the row can be seen, or never will be; so does a prepared
# transaction.
_OPEN_WRITERS = """
select distinct virtualtransaction
  from pg_catalog.pg_locks
  where locktype = 'relation' and relation = 'public.push_notifications'::regclass::oid and mode = 'RowExclusiveLock'
    and database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
"""

_LOST_LATELY = """
select pg_catalog.count(*) from push_listener.workers where lost and stopped_at > pg_catalog.now() - interval '1 hour'
"""

_SCHEMA_VERSION = "select coalesce(pg_catalog.max(version), 0) from push_listener.migrations"
_DRIFT = "select finding from push_listener.drift() order by finding limit 20"

# A rollback holds the lock. A stranger that holds the lock keeps no worker from starting.
_MAY_BEGIN: LiteralString = """
select case when pg_catalog.pg_try_advisory_xact_lock_shared(%(rollback)s::bigint) then true
            else not exists (select from push_listener.lock_holders where lock = 'rollback' and granted and is_ours) end
"""
_REGISTER: LiteralString = (
    "insert into push_listener.workers (name, incarnation) select %(name)s::text, %(incarnation)s::uuid where ("
    + _MAY_BEGIN
    + ") returning id"
)
_REGISTER_AS: LiteralString = (
    "insert into push_listener.workers (id, name, incarnation) overriding system value "
    "select %(id)s::integer, %(name)s::text, %(incarnation)s::uuid where ("
    + _MAY_BEGIN
    + ") on conflict do nothing returning id"
)
_SIGN_OFF = """
update push_listener.workers set stopped_at = pg_catalog.now()
  where id = %(worker)s and incarnation = %(incarnation)s::uuid
"""

_LEAST_RANDOM_ID = 1 << 30
_TRIES_OF_AN_ID = 3


@dataclass(frozen=True, slots=True)
class QuotaState:
    """The quota that all live workers share."""

    workers: int
    """The number of live workers, this one included."""
    fraction: float
    """The fraction of FCM's quota that all workers together could use when it was last reduced."""
    age: float
    """Seconds since it was last reduced."""


@dataclass(frozen=True, slots=True)
class _QuotaRow:
    """A row of _QUOTA_STATE."""

    fraction: float | None
    age: float | None
    others: int


class Workers:
    """The other workers, as one worker sees them.

    Every method raises ``psycopg.Error``: ``OperationalError`` when the database cannot be reached or no connection
    becomes free in time. None retries by itself.
    """

    def __init__(self, pool: Pool, *, worker_id: int, lease: float, incarnation: UUID | None = None) -> None:
        self._pool = pool
        self.worker_id = worker_id
        """The id of this worker: ``claimed_by`` in its rows."""
        self.incarnation = incarnation
        """Distinguishes its row in ``push_listener.workers`` from that of another worker with the same id."""
        self._lease = lease

    async def peers(self) -> dict[int, bool]:
        """The other workers that have not signed off, and whether each is alive."""
        async with self._pool.connection() as conn:
            return dict(await (await conn.execute(_PEERS, {"worker": self.worker_id})).fetchall())

    async def lost_lately(self) -> int:
        """The number of workers that have died in the last hour."""
        async with self._pool.connection() as conn:
            return int(await fetch_value(conn, _LOST_LATELY))

    async def peers_hold_rows(self) -> bool:
        """Whether another worker has claimed rows, with a lease no longer than this worker's, and not settled them."""
        values = {"lease": self._lease, "worker": self.worker_id}
        async with self._pool.connection() as conn:
            return bool(await fetch_value(conn, _PEERS_HOLD_ROWS, values))

    async def is_polling_locked(self) -> bool:
        """Whether any session, a worker's or a stranger's, has the polling lock, so that inserts do not notify."""
        async with self._pool.connection() as conn:
            return bool(await fetch_value(conn, _POLLING_LOCKED))

    async def open_writers(self) -> set[str]:
        """The open transactions that may have written rows to the queue, which no other transaction can see yet."""
        async with self._pool.connection() as conn:
            cursor = conn.cursor(row_factory=scalar_row)
            await cursor.execute(_OPEN_WRITERS)
            return set(await cursor.fetchall())

    async def rescue(self, suspects: Collection[int]) -> tuple[list[int], int, list[UUID]]:
        """Puts the rows of dead workers back into the queue, without using a try.

        Returns the ids of the ``suspects`` that are dead, the number of rows that were put back, and the ids of these
        rows and of those that could not be written. A dead worker is not returned while another transaction has locked
        one of its rows.
        """
        async with self._pool.connection() as conn, conn.transaction():
            cursor = await conn.execute(_RESCUE, {"class": LIVENESS_CLASS, "suspects": list(suspects)})
            dead, rows = await cursor.fetchone() or ([], [])
            return dead, await put_back(conn, rows, are_lost=True), rows

    async def quota_state(self) -> QuotaState:
        """The number of live workers, and how far the quota is reduced."""
        async with self._pool.connection() as conn:
            cursor = conn.cursor(row_factory=class_row(_QuotaRow))
            await cursor.execute(_QUOTA_STATE, {"worker": self.worker_id})
            row = await cursor.fetchone()
        assert row is not None
        fraction, age = row.fraction, row.age
        if fraction is None or age is None or age < 0.0:  # negative: from before the clock was set back
            fraction, age = 1.0, 0.0
        return QuotaState(1 + row.others, fraction, age)

    async def reduce_quota(self, fraction: float, recovery: float) -> None:
        """Reduces the quota of all workers, unless one of them has just done so.

        Args:
            fraction: of FCM's quota.
            recovery: the seconds in which the quota recovers from 0 to all of it.
        """
        async with self._pool.connection() as conn:
            await conn.execute(_REDUCE_QUOTA, {"fraction": fraction, "recovery": recovery})

    async def sign_off(self) -> None:
        """Records that this worker stopped in an orderly way."""
        async with self._pool.connection() as conn:
            await conn.execute(_SIGN_OFF, {"worker": self.worker_id, "incarnation": self.incarnation})


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

    Raises psycopg.errors.UndefinedTable when none was applied, or StrangersSchema.
    """
    async with pool.connection() as conn:
        stranger = await fetch_value(conn, STRANGERS_SCHEMA)
        if stranger is not None:
            raise StrangersSchema(stranger)
        return int(await fetch_value(conn, _SCHEMA_VERSION))


async def drift(pool: Pool) -> list[str]:
    """The differences from the privileges and policies that migrate sets, in words; at most twenty."""
    async with pool.connection() as conn:
        cursor = conn.cursor(row_factory=scalar_row)
        await cursor.execute(_DRIFT)
        return await cursor.fetchall()


async def rows(pool: Pool, statement: LiteralString) -> list[tuple[Any, ...]]:
    """The rows that a statement returns."""
    async with pool.connection() as conn:
        return await (await conn.execute(statement)).fetchall()


class RollingBack(Exception):
    """``push-listener migrate --down`` is running, and no worker may start."""


async def register(pool: Pool, name: str, *, random_id: bool = False, incarnation: UUID | None = None) -> int:
    """Adds this process to ``push_listener.workers``; returns its id, for ``claimed_by``. Raises RollingBack.

    Args:
        pool: leads to the database of the queue.
        name: for people.
        random_id: takes a random id instead of the next one, whose liveness lock a stranger may hold already. There are
            a billion random ids, and Postgres has memory for some ten thousand locks.
        incarnation: by this the worker recognizes its row.
    """
    values: dict[str, object] = {
        "name": storable(name),
        "incarnation": incarnation or uuid4(),
        "rollback": ROLLBACK_LOCK,
    }
    async with pool.connection() as conn:
        worker_id: int | None
        for _ in range(_TRIES_OF_AN_ID if random_id else 0):
            values["id"] = _LEAST_RANDOM_ID + secrets.randbelow(_LEAST_RANDOM_ID)
            worker_id = await fetch_value(conn, _REGISTER_AS, values)
            if worker_id is not None:
                return worker_id
        worker_id = await fetch_value(conn, _REGISTER, values)
    if worker_id is None:
        raise RollingBack
    return worker_id
