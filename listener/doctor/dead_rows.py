"""Whether autovacuum keeps up with the dead rows that push-listener causes: at least two for each push."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from listener.doctor.findings import Finding, Group
from listener.doctor.looking import Connection, records
from listener.postgres.statements import load

_GROUP = Group("dead rows")
_TABLES = load(__file__, "dead_rows")

_MANY = 10_000
"""Fewer dead rows cost a claim less than a millisecond, in a table of any size."""

_BEHIND = 2.0
"""Autovacuum does not keep up if a table has more dead rows than this times its threshold, and more than ``_MANY``."""


@dataclass(frozen=True, slots=True)
class Table:
    """Postgres's estimates of a table."""

    name: str
    live: int
    dead: int
    vacuumed_at: str | None
    runs_on_server: bool
    """Whether autovacuum runs on the server at all."""
    runs_on_table: bool
    threshold: float
    """The number of dead rows from which autovacuum works on the table."""


def examine(conn: Connection) -> Iterator[Finding]:
    """Raises psycopg.Error."""
    return judge(records(conn, Table, _TABLES))


def judge(tables: list[Table]) -> Iterator[Finding]:
    """Pure."""
    if tables and not tables[0].runs_on_server:
        yield _GROUP.fault(
            "autovacuum is off for the whole server (autovacuum, track_counts)",
            "alter system set autovacuum = on, alter system set track_counts = on, and select pg_reload_conf(), as a "
            "superuser",
        )
    for table in tables:
        if not table.runs_on_table:
            yield _GROUP.fault(
                f"autovacuum is off for {table.name}", f"alter table {table.name} reset (autovacuum_enabled)"
            )
        last = f", last vacuumed at {table.vacuumed_at}" if table.vacuumed_at else ", never vacuumed"
        text = f"{table.name}: about {table.dead:,} dead rows beside {table.live:,} live ones{last}"
        if table.dead > max(_MANY, _BEHIND * table.threshold):
            yield _GROUP.warning(f"{text}: autovacuum does not keep up", f"vacuum (analyze) {table.name}")
        else:
            yield _GROUP.ok(text)
