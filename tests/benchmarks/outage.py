"""Telemetry of an application whose database is away: what is stored afterwards.

    python -m tests.benchmarks.outage --seconds 60

An application logs 5,000 records with the default options of ``TelemetryService``, half of them while nothing answers,
the others once the database is back. Of the first calls that arrive then, three are carried out and get no answer.
Ways:
``Direct`` through a relay, and ``Rest`` to the tests' stand-in for PostgREST.
"""

from __future__ import annotations

import time

import click
import psycopg
from rich.table import Table

from listener.client import TelemetryCounts, TelemetryService
from tests.benchmarks import rig
from tests.support.client import WAYS, Way, way
from tests.support.postgres import Server, Template, programs

_RECORDS = 5000
_LOST = 3


def _outage(entry: Way, seconds: float) -> tuple[TelemetryCounts, int, int, float]:
    """What the service counts, the rows, the distinct ones, and the seconds from the return to the last row."""
    service = TelemetryService(entry.service())
    entry.faults.go_away()
    for number in range(_RECORDS // 2):
        service.batch_log("load", str(number))
    time.sleep(seconds)
    if service.counts().accepted:
        raise rig.BenchmarkFailed("a record was stored while the database was away")
    entry.faults.lose_answers(_LOST)
    entry.faults.come_back()
    back = time.monotonic()
    for number in range(_RECORDS // 2, _RECORDS):
        service.batch_log("load", str(number))
    while not service.flush(600):
        pass
    took = time.monotonic() - back
    counts = service.close()
    with psycopg.connect(entry.database.dsn) as conn:
        row = conn.execute("select count(*), count(distinct message) from telemetry_logs").fetchone()
    assert row is not None
    return counts, *row, took


@click.command()
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(0, min_open=True))
def main(seconds: float) -> None:
    """What telemetry stores after an outage."""
    bin_dir = programs(rig.POSTGRES)
    if bin_dir is None:
        raise rig.BenchmarkFailed(f"PostgreSQL {rig.POSTGRES} is not here: see CONTRIBUTING.md")
    table = Table("way", "rows", "distinct", "counts", "s until all are stored", title=rig.machine())
    with Server(rig.POSTGRES, bin_dir, settings={}) as postgres:
        for name in WAYS:
            with postgres.database(Template.MIGRATED) as database, way(name, database) as entry:
                counts, rows, distinct, took = _outage(entry, seconds)
                table.add_row(name, str(rows), str(distinct), str(counts), f"{took:.1f}")
    rig.console.print(table)


if __name__ == "__main__":
    main()
