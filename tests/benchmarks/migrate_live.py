"""How long an application stalls while its table of a million rows is adopted under it.

    python -m tests.benchmarks.migrate_live --rows 1000000 --writers 4

Writers insert without a pause, each row a transaction of its own, and a reader reads as the application's users do.
The longest insert is told for a while without a migration, for the migration as a whole and for each of its steps.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import click
import psycopg

from listener.schema import migrate
from tests.support.postgres import Server, Template, programs

SHAPE = Path(__file__).parents[1] / "support" / "shapes" / "reference.sql"
BEFORE_S = 10.0

# Of a hundred rows 94 were sent, 3 have failed, and 3 have been waiting for months.
_ROWS = """
insert into push_notifications (driver_id, user_id, title, body, data, status, created_at, updated_at)
  select md5((n % 5000)::text)::uuid, md5((n % 5000)::text)::uuid, 'Trip ' || n,
         'Your trip number ' || n || ' begins in ten minutes', jsonb_build_object('trip', n),
         case when n % 100 < 94 then 'sent' when n % 100 < 97 then 'failed' else 'pending' end,
         now() - interval '100 days', now() - interval '100 days'
    from generate_series(1, %s) n
"""
_INSERT = """
insert into push_notifications (driver_id, user_id, title, body, data)
  values (gen_random_uuid(), gen_random_uuid(), 'Trip', 'Your trip begins in ten minutes', '{"trip": 1}')
"""
_READ = "select id, title, status from push_notifications order by id desc limit 20"

Sample = tuple[float, float]
"""When a statement began, and for how long it took; seconds."""


@dataclass(frozen=True, slots=True)
class Span:
    name: str
    start: float
    end: float

    def longest(self, samples: list[Sample]) -> float:
        """Of the statements that were under way in it; seconds."""
        inside = [took for start, took in samples if start < self.end and start + took > self.start]
        return max(inside, default=0.0)


@click.command(help=__doc__)
@click.option("--rows", default=1_000_000, show_default=True, type=click.IntRange(1))
@click.option("--writers", default=4, show_default=True, type=click.IntRange(1, 40))
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--postgres", default=18, show_default=True, help="Major version.")
def main(rows: int, writers: int, runs: int, postgres: int) -> None:
    bin_dir = programs(postgres)
    if bin_dir is None:
        raise click.UsageError(f"PostgreSQL {postgres} is not here")
    settings = {"shared_buffers": "512MB", "max_wal_size": "4GB", "max_connections": "50"}
    with Server(postgres, bin_dir, settings) as server:
        for run in range(1, runs + 1):
            click.echo(f"run {run}")
            with server.database(Template.SUPABASE) as database:
                measure(database.dsn, rows, writers)


def measure(dsn: str, rows: int, writers: int) -> None:
    """One adoption; prints what it cost."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SHAPE.read_bytes())
        connection.execute(_ROWS.replace("%s", str(rows)).encode())
        connection.execute("vacuum analyze push_notifications")

    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    queue = context.SimpleQueue()
    statements = [_INSERT] * writers + [_READ]
    processes = [context.Process(target=work, args=(dsn, each, stop, queue)) for each in statements]
    for process in processes:
        process.start()
    for _ in processes:
        queue.get()  # it is connected

    started = time.monotonic()
    time.sleep(BEFORE_S)
    spans = [Span("without a migration", started, time.monotonic())]
    steps: list[Span] = []
    begun = last = time.monotonic()

    def report(migration: migrate.Migration) -> None:
        nonlocal last
        now = time.monotonic()
        steps.append(Span(f"{migration.version:04d}_{migration.name}", last, now))
        last = now

    migrate.apply(dsn, report=report, warn=lambda line: click.echo(f"  {line}"))
    spans += [Span("the whole migration", begun, last), *steps]
    stop.set()
    inserts: list[Sample] = []
    reads: list[Sample] = []
    for _ in processes:
        statement, samples = queue.get()
        (inserts if statement == _INSERT else reads).extend(samples)
    for process in processes:
        process.join()

    click.echo(f"  {'':<24} {'took':>9} {'longest insert':>15} {'longest read':>13} {'inserts/s':>10}")
    for span in spans:
        took = span.end - span.start
        rate = sum(span.start <= start < span.end for start, _ in inserts) / took
        click.echo(
            f"  {span.name:<24} {took:7.2f} s {1000 * span.longest(inserts):12.0f} ms "
            f"{1000 * span.longest(reads):10.0f} ms {rate:10.0f}"
        )


def work(dsn: str, statement: str, stop: Event, queue: multiprocessing.SimpleQueue) -> None:  # type: ignore[type-arg]
    """Repeats one statement until told to stop, and hands over how long each took."""
    samples: list[Sample] = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        queue.put(None)
        while not stop.is_set():
            start = time.monotonic()
            connection.execute(statement.encode())
            samples.append((start, time.monotonic() - start))
    queue.put((statement, samples))


if __name__ == "__main__":
    main()
