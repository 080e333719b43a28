"""The workers that the database knows: which of them live, and which rows the dead ones still hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import LiteralString

from listener.doctor.findings import Finding, Group
from listener.doctor.looking import Connection, records, value
from listener.postgres.statements import load
from listener.postgres.unwritable import UNWRITABLE

_GROUP = Group("workers")
_WORKERS = load(__file__, "workers")
_FRACTION: LiteralString = """
select least(1.0, fraction + extract(epoch from pg_catalog.clock_timestamp() - reduced_at)::float8 / 60.0)
  from push_listener.shared_quota
"""
"""The fraction of FCM's quota that all workers together use now. It recovers within a minute, see docs/quota.md."""

_STARTING_S = 30.0


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that has not signed off."""

    id: int
    name: str
    guarded: bool
    """Whether it has held its liveness lock, which shows whether it lives."""
    seconds: float
    """Seconds since its start."""
    is_alive: bool
    rows: int
    """How many rows it has claimed and not settled, at most 10,001."""


@dataclass(frozen=True, slots=True)
class Unwritable:
    """Rows that the database does not let push-listener write."""

    statement: str
    code: str
    count: int


def read(conn: Connection) -> list[Worker]:
    """Raises psycopg.Error."""
    return records(conn, Worker, _WORKERS)


def alive(found: list[Worker]) -> int:
    """How many workers live for certain."""
    return sum(worker.is_alive for worker in found)


def examine(conn: Connection) -> Iterator[Finding]:
    """Raises psycopg.Error."""
    found = read(conn)
    yield from judge(found)
    yield from judge_quota(alive(found), value(conn, _FRACTION))
    yield from judge_unwritable([Unwritable(*row) for row in conn.execute(UNWRITABLE).fetchall()])


def judge(found: list[Worker]) -> Iterator[Finding]:
    """Pure."""
    living = [worker for worker in found if worker.is_alive]
    dead = [worker for worker in found if worker.guarded and not worker.is_alive]
    unknown = [worker for worker in found if not worker.guarded and not worker.is_alive]
    for worker in dead:
        rows = "more than 10,000" if worker.rows > 10_000 else f"{worker.rows:,}"
        yield _GROUP.warning(
            f"worker {worker.id} ({worker.name}) has died without signing off, and holds {rows} rows",
            "start push-listener run: a worker that lives takes the rows over within seconds"
            if not living
            else "wait some seconds: the others take the rows over; if this stays, read their logs",
        )
    if old := [worker for worker in unknown if worker.seconds > _STARTING_S]:
        yield _GROUP.skipped(
            f"whether {_named(old)} live: such workers hold no lock (WAKEUP=sweep, or they ended before they had it)"
        )
    if living:
        yield _GROUP.ok(f"alive: {_named(living)}")
    elif not unknown:
        yield _GROUP.warning("none is alive: nothing is sent", "start push-listener run")


def _named(workers: list[Worker]) -> str:
    some = ", ".join(f"{worker.id} ({worker.name})" for worker in workers[:5])
    return some + (f" and {len(workers) - 5} more" if len(workers) > 5 else "")


def judge_quota(living: int, fraction: float | None) -> Iterator[Finding]:
    """Pure. ``fraction``: the fraction of FCM's quota that all workers together use now."""
    if fraction is not None and fraction < 1.0:
        yield _GROUP.warning(
            f"all together use {100 * fraction:.0f}% of FCM_QUOTA, because FCM has answered 429; this grows to 100% "
            "within a minute",
            "set FCM_QUOTA to what the Google Cloud console shows for the project (docs/quota.md)",
        )
    if living > 1:
        yield _GROUP.skipped(
            f"whether all {living} have the same FCM_QUOTA, which the database does not record: compare their settings"
        )


def judge_unwritable(found: list[Unwritable]) -> Iterator[Finding]:
    """Pure."""
    for each in found:
        yield _GROUP.warning(
            f"{each.count:,} rows are passed over: the database refuses to {each.statement} them ({each.code})",
            "look for triggers, constraints and indexes of the application on push_notifications that refuse an "
            "update; select * from push_listener.unwritable_rows",
        )
