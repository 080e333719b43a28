"""Whether there are enough connections for every live process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from listener.doctor.findings import Finding, Group
from listener.doctor.looking import Connection, record
from listener.postgres.statements import load

_GROUP = Group("connections")
_FACTS = load(__file__, "connections")

LEAST = 2
"""The connections without which a process sends nothing: the doorbell, and one for statements. See docs/poolers.md."""

MOST = 5
"""The connections of a process under load: the doorbell, and four for statements."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Limits and counts; -1: no limit."""

    most: int
    reserved: int
    """For superusers, and from PostgreSQL 16 for the role pg_use_reserved_connections."""
    used: int
    most_of_database: int
    used_of_database: int
    most_of_role: int
    used_of_role: int
    ours: int
    """The connections of push-listener's processes with this role."""


def examine(conn: Connection, *, workers: int, purges: bool) -> Iterator[Finding]:
    """Raises psycopg.Error. ``workers``: how many workers live."""
    return judge(record(conn, Facts, _FACTS), workers=workers, each=MOST + purges)


def judge(facts: Facts, *, workers: int, each: int) -> Iterator[Finding]:
    """Pure. ``each``: the most connections of one process. If no worker lives, there must be room to start one."""
    processes = max(1, workers)
    wanted = max(0, processes * each - facts.ours)
    least = max(0, processes * LEAST - facts.ours)
    limits = (
        ("max_connections of the server", facts.most - facts.reserved, facts.used, "raise max_connections"),
        (
            "CONNECTION LIMIT of the database",
            facts.most_of_database,
            facts.used_of_database,
            "alter database ... connection limit",
        ),
        (
            "CONNECTION LIMIT of the role",
            facts.most_of_role,
            facts.used_of_role,
            "alter role ... connection limit",
        ),
    )
    is_enough = True
    for name, most, used, remedy in limits:
        if most < 0:
            continue
        free = max(0, most - used)
        needs = f"{_processes(processes)}, with {facts.ours} open and up to {processes * each} under load"
        if free < least:
            is_enough = False
            yield _GROUP.fault(
                f"{name}: {free} of {most} are free, which is too few for {needs}",
                f"close connections of others, use a pooler, or {remedy}",
            )
        elif free < wanted:
            is_enough = False
            yield _GROUP.warning(
                f"{name}: {free} of {most} are free, which is little for {needs}",
                f"push-listener makes do with {LEAST} for each process, more slowly; {remedy}, or use a pooler",
            )
    if is_enough:
        yield _GROUP.ok(
            f"{facts.used} of {facts.most - facts.reserved} are in use; {_processes(processes)} may take up to "
            f"{processes * each}"
        )


def _processes(number: int) -> str:
    return "one process" if number == 1 else f"{number} processes"
