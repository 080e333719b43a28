"""Old snapshots. While somebody holds one, vacuum removes no row that died after it, and queries over the whole range
of due times must pass all these dead rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql

from listener.doctor.findings import Finding, Group
from listener.doctor.looking import Connection, records
from listener.postgres.overview import HOLDERS
from listener.postgres.statements import load

_GROUP = Group("snapshots")
_HOLDERS = load(__file__, "snapshots", holders=HOLDERS)
_SEES_ALL: LiteralString = (
    "select pg_catalog.pg_has_role('pg_read_all_stats', 'usage'), pg_catalog.quote_ident(current_user)"
)

OLD_S = 60.0
"""Seconds from which doctor reports a snapshot. A claim, or a web request of an application, is far shorter."""

OLD_AGE = 10_000
"""The age in transactions from which doctor reports a snapshot: at least as many rows may have died since."""

VERY_OLD_S = 3600.0
VERY_OLD_AGE = 1_000_000


@dataclass(frozen=True, slots=True)
class Holder:
    """Something that holds a snapshot, or has the same effect."""

    kind: str
    """``session``, ``standby``, ``prepared transaction`` or ``replication slot``."""
    name: str | None
    pid: int | None
    role: str | None
    state: str | None
    age: int
    """How many transactions have begun since."""
    seconds: float | None

    @property
    def remedy(self) -> str:
        """How to end it."""
        match self.kind:
            case "prepared transaction":
                return f"rollback prepared {sql.quote(self.name or '')}"
            case "replication slot":
                return (
                    f"select pg_drop_replication_slot({sql.quote(self.name or '')})"
                    if self.state == "inactive"
                    else "let the consumer of the slot catch up"
                )
            case "standby":
                return "set hot_standby_feedback = off on the standby, or end the long query there"
            case _:
                return f"select pg_terminate_backend({self.pid})"

    def __str__(self) -> str:
        who = {
            "session": f"session {self.pid} of role {self.role}, {self.state},",
            "standby": f"a standby (session {self.pid} of role {self.role})",
        }.get(self.kind, f"the {self.kind} {self.name}" + (f", {self.state}," if self.state else ""))
        since = "" if self.seconds is None else f" for {_duration(self.seconds)}"
        return f"{who} holds a snapshot{since}, {self.age:,} transactions old"


def examine(conn: Connection) -> Iterator[Finding]:
    """Raises psycopg.Error."""
    row = conn.execute(_SEES_ALL).fetchone()
    sees_all, role = row if row else (False, "...")
    return judge(records(conn, Holder, _HOLDERS), sees_all=bool(sees_all), role=str(role))


def judge(holders: list[Holder], *, sees_all: bool, role: str) -> Iterator[Finding]:
    """Pure. ``sees_all``: whether the role sees the snapshots of other roles."""
    old = [each for each in holders if (each.seconds or 0.0) >= OLD_S or each.age >= OLD_AGE]
    for each in old:
        is_very_old = (each.seconds or 0.0) >= VERY_OLD_S or each.age >= VERY_OLD_AGE
        effect = (
            "dead rows of the queue pile up behind it, and looks over the whole range of due times get slower"
        )
        yield (_GROUP.fault if is_very_old else _GROUP.warning)(f"{each}: {effect}", each.remedy)
    if old:
        return
    if sees_all:
        yield _GROUP.ok(
            f"the oldest is {holders[0].age:,} transactions old" if holders else "nobody holds an old one"
        )
    else:
        yield _GROUP.skipped(
            "those of other roles are hidden from this role; to see them: "
            f"grant pg_read_all_stats to {role}, as a superuser"
        )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
