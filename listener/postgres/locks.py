"""The advisory locks of push-listener, and the strangers that hold one: sessions that do not belong to push-listener.

Postgres lets every login take every advisory lock, so this cannot be prevented. push-listener works without the lock
and names its holder. The view ``push_listener.lock_holders`` decides which session is a stranger.
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
from listener.metrics.own import Metrics

log = structlog.get_logger(__name__)

CHANNEL = "push_listener"
"""The NOTIFY channel on which the triggers of db/migrations notify."""

LIVENESS_CLASS = 1_886_745_448
"""First key of the liveness locks ("push"): each worker holds one while it is alive. The second key is its id."""

POLLING_LOCK = (1_886_745_449, 0)
"""The advisory lock that a worker holds, exclusively, while it is busy polling: the triggers then do not notify."""

ROLLBACK_LOCK = 7_308_332_045_000_002
"""The advisory lock that ``migrate --down`` holds: no worker starts meanwhile."""

PURGE_LOCK = 7_308_332_045_000_003
"""The advisory lock that the purging worker holds, so that only one worker purges."""

STRANGERS: LiteralString = """
select lock, pg_catalog.min(key) as key, pid, role, prepared, pg_catalog.bool_or(exclusive) as exclusive,
       pg_catalog.count(*)::integer as locks
  from push_listener.lock_holders
  where not is_ours
  group by lock, pid, role, prepared
  order by lock, exclusive, pid desc, prepared
"""
"""One row for each stranger and kind of lock. The columns are the fields of LockHolder."""

# Does not read the view lock_holders, because the database may not be migrated yet. A prepared transaction has neither
# pid nor role here.
_HOLDER = """
select l.pid, pg_catalog.pg_get_userbyid(a.usesysid)::text
  from pg_catalog.pg_locks l
  left join lateral pg_catalog.pg_stat_get_activity(coalesce(l.pid, 0)) a on true
  where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
    and (l.classid, l.objid) = ((%(key)s::bigint >> 32)::oid, (%(key)s::bigint & 4294967295)::oid)
    and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
"""

# The trigger of every insert holds the polling lock for an instant, in shared mode. A session with the lock in shared
# mode is a stranger only if it holds the lock in this number of consecutive looks.
_LOOKS = 3
_BETWEEN_LOOKS_S = 0.1

_MOST_WARNINGS = 10
"""At once: a stranger may open many sessions."""

_EFFECTS = {
    "polling": "inserts do not notify, and workers poll the queue instead",
    "liveness": "a worker with that id could not start or reconnect; it takes another id",
    "purge": "another process seems to purge; nothing waits for it",
    "migrate": "push-listener migrate cannot start",
    "rollback": "push-listener migrate --down cannot start",
}


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A stranger: a session or prepared transaction that holds a lock of push-listener, or waits for one."""

    lock: str
    """``polling``, ``liveness``, ``purge``, ``migrate`` or ``rollback``."""
    key: int
    """For ``liveness`` the id of the worker whose lock it is; the lowest id if the stranger holds several locks."""
    pid: int | None
    """None for a prepared transaction."""
    role: str
    prepared: str | None
    """The name of a prepared transaction."""
    exclusive: bool
    locks: int
    """The number of locks of that kind."""

    @property
    def effect(self) -> str:
        """What the stranger causes."""
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
        """Whether it may be the trigger of an insert, which releases the lock at once."""
        return self.lock == "polling" and not self.exclusive

    def __str__(self) -> str:
        holder = f"prepared transaction {self.prepared!r}" if self.pid is None else f"session {self.pid}"
        return (
            f"{holder} of role {self.role} holds the lock {self.lock!r}: {self.effect}. Remedy: {self.remedy}"
        )


def strangers(conn: psycopg.Connection[Any]) -> list[LockHolder]:
    """The strangers that hold locks of push-listener. Raises psycopg.Error."""
    found = _read(conn)
    for _ in range(_LOOKS - 1):
        if any(holder.is_momentary for holder in found):
            time.sleep(_BETWEEN_LOOKS_S)
            seen = {(holder.lock, holder.pid) for holder in found}
            found = [each for each in _read(conn) if not each.is_momentary or (each.lock, each.pid) in seen]
    return found


def holder_of(conn: psycopg.Connection[Any], key: int) -> tuple[int | None, str | None] | None:
    """Pid and role of a session that holds the advisory lock with this key of 64 bits; None if no session does."""
    row = conn.cursor(row_factory=tuple_row).execute(_HOLDER, {"key": key}).fetchone()
    return None if row is None else (row[0], row[1])


def _read(conn: psycopg.Connection[Any]) -> list[LockHolder]:
    return conn.cursor(row_factory=class_row(LockHolder)).execute(STRANGERS).fetchall()


class LockWatch:
    """Names the strangers in the log and in the metrics for as long as they hold locks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Key: see _identity.
        self._looks: Counter[tuple[str, int | None, str | None]] = Counter()
        self._reported: dict[tuple[str, int | None, str | None], LockHolder] = {}

    def saw(self, found: Collection[LockHolder]) -> None:
        """Takes the strangers that a sweep has found, all of them."""
        looks = Counter({_identity(each): self._looks[_identity(each)] + 1 for each in found})
        present = [each for each in found if not each.is_momentary or looks[_identity(each)] >= _LOOKS]
        self._looks = looks
        self._metrics.shared.show_strangers(Counter((each.lock, each.role) for each in present))
        reported = {_identity(each): each for each in present}
        self._warn(present)
        for identity, gone in self._reported.items():
            if identity not in reported:
                log.info("a stranger no longer holds a lock", lock=gone.lock, pid=gone.pid, role=gone.role)
        self._reported = reported

    def _warn(self, present: Sequence[LockHolder]) -> None:
        new = [each for each in present if _identity(each) not in self._reported]
        known = [each for each in present if _identity(each) in self._reported]
        due = new + [each for each in known if should_log(self._looks[_identity(each)])]
        for holder in due[:_MOST_WARNINGS]:
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
        if len(due) > _MOST_WARNINGS:
            log.warning("more strangers hold locks of push-listener", count=len(due) - _MOST_WARNINGS)


def _identity(holder: LockHolder) -> tuple[str, int | None, str | None]:
    return holder.lock, holder.pid, holder.prepared
