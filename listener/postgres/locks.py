"""Strangers: sessions that hold an advisory lock of push-listener and are no part of it.

Postgres lets every login take every advisory lock, so this cannot be prevented. push-listener goes on without the lock
and says who holds it. The view ``push_listener.lock_holders`` decides who is a stranger.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
import structlog
from psycopg import sql
from psycopg.rows import class_row, tuple_row

from listener.log import should_log
from listener.metrics import Metrics

log = structlog.get_logger(__name__)

CHANNEL = "push_listener"
"""The NOTIFY channel that the triggers of db/migrations ring."""

LIVENESS_CLASS = 1_886_745_448
"""First key of the advisory locks that workers hold while they live ("push"); the second is the worker's id."""

POLLING_LOCK = (1_886_745_449, 0)
"""The advisory lock that silences the bell: held, exclusively, by a worker that polls."""

ROLLBACK_LOCK = 7_308_332_045_000_002
"""The advisory lock that ``migrate --down`` holds: no worker begins meanwhile."""

STRANGERS: LiteralString = """
select lock, pg_catalog.min(key) as key, pid, role, prepared, pg_catalog.bool_or(exclusive) as exclusive,
       pg_catalog.count(*)::integer as locks
  from push_listener.lock_holders
  where not is_ours
  group by lock, pid, role, prepared
  order by lock, exclusive, pid desc, prepared
"""
"""One row for each stranger and kind of lock; the columns are the fields of LockHolder."""

# Works on any database, migrated or not. A prepared transaction has neither pid nor role here.
_HOLDER = """
select l.pid, pg_catalog.pg_get_userbyid(a.usesysid)::text
  from pg_catalog.pg_locks l
  left join lateral pg_catalog.pg_stat_get_activity(coalesce(l.pid, 0)) a on true
  where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
    and (l.classid, l.objid) = ((%(key)s::bigint >> 32)::oid, (%(key)s::bigint & 4294967295)::oid)
    and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
"""

# The trigger of every insert holds the lock "polling" for a moment, in shared mode. Only a session that holds it in
# this many looks in a row is a stranger.
_LOOKS = 3
_BETWEEN_LOOKS_S = 0.1

_MOST_TOLD = 10
"""Warnings at once. A stranger may open many sessions."""

_EFFECTS = {
    "polling": "inserts do not ring, and workers look at the queue instead",
    "liveness": "a worker with that id could not start, or could not come back; it takes another id",
    "purge": "it looks as if another process purged; it is not waited for",
    "migrate": "push-listener migrate cannot start",
    "rollback": "push-listener migrate --down cannot start",
}


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A session or prepared transaction that holds, or waits for, a lock that is not its own."""

    lock: str
    """``polling``, ``liveness``, ``purge``, ``migrate`` or ``rollback``."""
    key: int
    """For ``liveness`` the id of the worker whose lock it is, the lowest if it holds several."""
    pid: int | None
    """None: a prepared transaction."""
    role: str
    prepared: str | None
    """The name of a prepared transaction."""
    exclusive: bool
    locks: int
    """How many locks of that kind it holds."""

    @property
    def effect(self) -> str:
        """What goes wrong because of it."""
        return _EFFECTS.get(self.lock, "")

    @property
    def remedy(self) -> str:
        """What an operator can do."""
        if self.pid is None:
            return f"rollback prepared {sql.quote(self.prepared or '')}, as {self.role} or a superuser"
        return (
            f"select pg_terminate_backend({self.pid}), as a superuser or a role with pg_signal_backend; "  # noqa: S608
            f"then revoke connect on this database from {self.role}, or from public"
        )

    @property
    def is_momentary(self) -> bool:
        """Whether it may be the trigger of an insert, which lets go at once."""
        return self.lock == "polling" and not self.exclusive

    def __str__(self) -> str:
        holder = f"prepared transaction {self.prepared!r}" if self.pid is None else f"session {self.pid}"
        return (
            f"{holder} of role {self.role} holds the lock {self.lock!r}: {self.effect}. Remedy: {self.remedy}"
        )


def strangers(conn: psycopg.Connection[Any]) -> list[LockHolder]:
    """Who holds locks of push-listener without being part of it. Raises psycopg.Error."""
    found = _read(conn)
    for _ in range(_LOOKS - 1):
        if any(holder.is_momentary for holder in found):
            time.sleep(_BETWEEN_LOOKS_S)
            seen = {(holder.lock, holder.pid) for holder in found}
            found = [each for each in _read(conn) if not each.is_momentary or (each.lock, each.pid) in seen]
    return found


def holder_of(conn: psycopg.Connection[Any], key: int) -> tuple[int | None, str | None] | None:
    """Pid and role of a session that holds an advisory lock with one key of 64 bits; None: it is free."""
    row = conn.cursor(row_factory=tuple_row).execute(_HOLDER, {"key": key}).fetchone()
    return None if row is None else (row[0], row[1])


def _read(conn: psycopg.Connection[Any]) -> list[LockHolder]:
    return conn.cursor(row_factory=class_row(LockHolder)).execute(STRANGERS).fetchall()


class LockWatch:
    """Says in the log and in the metrics who is a stranger, as long as it is so."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._looks: Counter[tuple[str, int | None, str | None]] = Counter()
        self._told: dict[tuple[str, int | None, str | None], LockHolder] = {}

    def saw(self, found: Collection[LockHolder]) -> None:
        """All strangers that there are now."""
        looks = Counter({_identity(each): self._looks[_identity(each)] + 1 for each in found})
        present = [each for each in found if not each.is_momentary or looks[_identity(each)] >= _LOOKS]
        self._looks = looks
        self._metrics.lock_stranger.clear()
        for holder in present:
            self._metrics.lock_stranger.labels(holder.lock, holder.role).set(holder.pid or 0)
        told = {_identity(each): each for each in present}
        self._warn(present)
        for identity, gone in self._told.items():
            if identity not in told:
                log.info("a stranger no longer holds a lock", lock=gone.lock, pid=gone.pid, role=gone.role)
        self._told = told

    def _warn(self, present: Sequence[LockHolder]) -> None:
        new = [each for each in present if _identity(each) not in self._told]
        again = [each for each in present if _identity(each) in self._told]
        due = new + [each for each in again if should_log(self._looks[_identity(each)])]
        for holder in due[:_MOST_TOLD]:
            log.warning(
                "a stranger holds a lock of push-listener",
                lock=holder.lock,
                key=holder.key,
                locks=holder.locks,
                pid=holder.pid,
                role=holder.role,
                prepared=holder.prepared,
                effect=holder.effect,
                remedy=holder.remedy,
            )
        if len(due) > _MOST_TOLD:
            log.warning("more strangers hold locks of push-listener", count=len(due) - _MOST_TOLD)


def _identity(holder: LockHolder) -> tuple[str, int | None, str | None]:
    return holder.lock, holder.pid, holder.prepared
