"""What a long history costs: claim, settle and statistics with many finished rows, beside the same with few.

    python -m tests.benchmarks.history --rows 10000000

Two databases of one Postgres hold finished pushes and their log rows, one of them ``--few`` and the other ``--rows``.
In both, in turn, pushes are put in, claimed, settled and counted, with the statements of ``push-listener``; a batch
of old ones is purged; and the metrics are read and written out as for a scrape. ``--scheduled`` pushes wait for
tomorrow in the larger one, and 1,000 in the other. Postgres does not wait for the disk here, and has 1 GB of buffers,
so that what is compared is its work. With 10,000,000 rows this takes about ten minutes, and 25 GB of disk while it
runs.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import click
import orjson
import psycopg
from prometheus_client import generate_latest
from psycopg import sql
from psycopg_pool import AsyncConnectionPool
from rich.table import Table

from listener.demo.embedded import EmbeddedPostgres
from listener.metrics.own import Metrics
from listener.postgres import overview, workers
from listener.postgres.queue import Queue
from listener.push import Decision, LogLine, Push, Settlement, Status
from listener.schema import retention
from listener.sending.overview_watch import figures
from tests.benchmarks import rig
from tests.benchmarks.options import Options
from tests.benchmarks.report import Line, at_most

T = TypeVar("T")

_BATCH = 500
_PURGED = 100
_ASKED = 5
_OLD = timedelta(hours=1)
_SETTINGS = {
    "fsync": "off",
    "autovacuum": "off",  # it would come at some time in the one database and not in the other
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "maintenance_work_mem": "512MB",
}
_PART = 250_000
_ROW_BYTES = 2_500
"""Of disk that a finished push takes, with its log row, indexes and what the load writes besides."""

# One in twenty is dead. A day has as many as any other of the last sixty.
_PUSHES = """
insert into push_notifications (device_token, title, body, data, status, error_code, next_attempt_at,
                                delivery_attempts, claimed_by, fcm_message_id, created_at, updated_at, sent_at)
select md5(n::text) || repeat(md5('a' || n), 4), 'Your ride is here', 'Blue estate car, two minutes away',
       jsonb_build_object('ride', n::text, 'screen', 'ride'), status,
       case when status = 'dead' then 'UNREGISTERED' end, null, 1, 1, 'projects/p/messages/' || n, at, at,
       case when status <> 'dead' then at end
  from generate_series(%(first)s::integer, %(last)s::integer) n,
       lateral (select case when n %% 20 = 0 then 'dead' when n %% 3 = 0 then 'delivered' else 'sent' end as status,
                       now() - (1 - n / %(rows)s::float8) * interval '60 days' as at) x
"""
_LOGS = """
insert into push_delivery_logs (push_id, device_token, status, details, created_at)
select id, device_token, case status when 'dead' then 'failed' else 'sent' end,
       jsonb_build_object('attempt', 1, 'ms', 50, 'http_status', 200, 'message_id', fcm_message_id), updated_at
  from push_notifications
"""
_COUNTS = """
insert into push_listener.daily_counts (day, error_code, sent, delivered, dead, expired, cancelled, retries,
                                        accepted_timed, accepted_seconds, delivered_timed, delivered_seconds)
select day, error_code, sum(sent), sum(delivered), sum(dead), sum(expired), sum(cancelled), sum(retries),
       sum(accepted_timed), sum(accepted_seconds), sum(delivered_timed), sum(delivered_seconds)
  from push_listener.ended
  group by day, error_code
"""
_NEW = """
insert into push_notifications (device_token, title, body, data)
select md5(n::text) || repeat(md5('b' || n), 4), 'Your ride is here', 'Blue estate car, two minutes away',
       jsonb_build_object('ride', n::text, 'screen', 'ride')
  from generate_series(1, %s) n
"""
_SCHEDULED = """
insert into push_notifications (device_token, title, body, data, next_attempt_at)
select md5(n::text) || repeat(md5('b' || n), 4), 'Your ride is here', 'Blue estate car, two minutes away',
       jsonb_build_object('ride', n::text, 'screen', 'ride'), now() + interval '1 day'
  from generate_series(1, %s) n
"""


def fill(dsn: str, rows: int, scheduled: int) -> None:
    """Finished pushes, with their log rows and counts, as a listener would have left them, and scheduled ones."""
    with psycopg.connect(dsn, autocommit=True) as conn, _without_indexes(conn):
        for first in range(1, rows + 1, _PART):
            conn.execute(_PUSHES, {"first": first, "last": min(first + _PART - 1, rows), "rows": rows})
        conn.execute(_LOGS)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(_COUNTS)
        conn.execute("vacuum analyze")
        conn.execute(_SCHEDULED, (scheduled,))


@contextmanager
def _without_indexes(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """What slows down a bulk load is put back at its end."""
    tables = ("push_notifications", "push_delivery_logs")
    keys = conn.execute(
        "select conrelid::regclass::text, conname, pg_get_constraintdef(oid) from pg_constraint "
        "where contype in ('f', 'p') and conrelid = any(%s::regclass[]) order by contype",
        (list(tables),),
    ).fetchall()
    for table, name, _ in keys:
        conn.execute(sql.SQL("alter table {} drop constraint {}").format(*map(sql.Identifier, (table, name))))
    indexes = conn.execute(
        "select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index "
        "where indrelid = any(%s::regclass[])",
        (list(tables),),
    ).fetchall()
    for name, _ in indexes:
        conn.execute(sql.SQL("drop index {}").format(sql.Identifier(name)))
    for table in tables:
        conn.execute(sql.SQL("alter table {} disable trigger user").format(sql.Identifier(table)))
    yield
    for table, name, definition in reversed(keys):  # a foreign key comes after what it refers to
        add = sql.SQL("alter table {} add constraint {} ").format(*map(sql.Identifier, (table, name)))
        conn.execute(add + sql.SQL(definition))
    for _, definition in indexes:
        conn.execute(definition)
    for table in tables:
        conn.execute(sql.SQL("alter table {} enable trigger user").format(sql.Identifier(table)))


class Side:
    """One of the databases, and what was measured on it."""

    def __init__(self, pool: AsyncConnectionPool[Any], worker: Queue) -> None:
        self._pool = pool
        self._queue = worker
        self._metrics = Metrics()
        self.seconds: dict[str, list[float]] = {}

    async def _scrape(self) -> bytes:
        return generate_latest(self._metrics.registry)

    async def round(self, *, counts: bool) -> None:
        """A batch of pushes from insert to settled, and what is asked beside; measured if it ``counts``."""

        async def timed(what: str, work: Callable[[], Awaitable[T]]) -> T:
            started = time.perf_counter()
            result = await work()
            if counts:
                self.seconds.setdefault(what, []).append(time.perf_counter() - started)
            return result

        async with self._pool.connection() as conn:
            await timed("insert", lambda: conn.execute(_NEW, (_BATCH,)))
        pushes = await timed("claim", lambda: self._queue.claim(_BATCH))
        if len(pushes) != _BATCH:
            raise rig.BenchmarkFailed(f"{len(pushes)} pushes were claimed instead of {_BATCH}")
        settlements = [_sent(push) for push in pushes]
        await timed("settle", lambda: self._queue.settlements.settle(settlements))
        for _ in range(_ASKED):
            found = await timed("overview", lambda: overview.read(self._pool))
            self._metrics.shared.show(figures(found, sees_workers=True))
            await timed("scrape", self._scrape)
        async with self._pool.connection() as conn:
            for _ in range(_ASKED):
                await timed("stats", lambda: conn.execute("select * from get_push_delivery_stats(30)"))
            before = await retention.moment(conn, _OLD)
            steps = retention.pushes(conn, before, dead=False, batch=_PURGED)
            step = await timed("purge", lambda: anext(steps))
        if step.gone.pushes != _PURGED:
            raise rig.BenchmarkFailed(f"{step.gone.pushes} pushes were purged instead of {_PURGED}")


def _sent(push: Push) -> Settlement:
    message_id = f"projects/p/messages/{uuid4()}"
    details: dict[str, object] = {"attempt": 1, "ms": 50, "message_id": message_id}
    decision = Decision(Status.SENT, message_id=message_id)
    return Settlement(push.id, push.attempt, decision, [LogLine(push.device_token, "sent", details)])


async def compare(dsns: list[str], rounds: int) -> list[dict[str, float]]:
    """Median seconds of each step on each of the databases, taken in turn."""
    sides = []
    pools = [
        AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False, kwargs={"autocommit": True})
        for dsn in dsns
    ]
    try:
        for pool in pools:
            await pool.open()
            sides.append(Side(pool, Queue(pool, worker_id=await workers.register(pool, "bench"), lease=60.0)))
        for number in range(-10, rounds):
            for side in sides if number % 2 else reversed(sides):
                await side.round(counts=number >= 0)
    finally:
        for pool in pools:
            await pool.close()
    return [{what: statistics.median(each) for what, each in side.seconds.items()} for side in sides]


def measure(
    few: int, rows: int, rounds: int, directory: Path | None, scheduled: int = 1000
) -> list[dict[str, float]]:
    """Median seconds of each step with few finished rows and 1,000 scheduled ones, and with many of both."""
    with EmbeddedPostgres(version=rig.POSTGRES, settings=_SETTINGS, temporary_parent=directory) as server:
        free, needed = shutil.disk_usage(server.data_dir).free, rows * _ROW_BYTES
        if free < needed:
            raise rig.BenchmarkFailed(
                f"{rows:,} rows need {needed / 1e9:.1f} GB of disk, {server.data_dir} has {free / 1e9:.1f} GB; "
                "TMPDIR names another place"
            )
        dsns = []
        for number, later in ((few, 1000), (rows, scheduled)):
            started = time.monotonic()
            rig.say(f"history: loading {number:,} finished rows")
            dsns.append(rig.new_database(server, f"rows_{number}"))
            fill(dsns[-1], number, later)
            rig.say(f"history: {number:,} rows loaded in {time.monotonic() - started:.0f} s")
        rig.say("history: claiming and settling")
        return asyncio.run(compare(dsns, rounds))


def part(options: Options) -> list[Line]:
    """One run: it is a long one."""
    rows = 1_000_000 if options.quick else 10_000_000
    few, many = measure(10_000, rows, 60, None)
    return [
        Line(
            f"{what}, {rows:,} finished to 10,000",
            "{:.2f}",
            [many[step] / few[step]],
            None if goal is None else at_most(goal),
        )
        for step, what, goal in (
            ("claim", "claim of 500", 1.2),
            ("settle", "settle of 500", 1.2),
            ("overview", "reading what the metrics show", 1.2),
            ("insert", "insert of 500", None),
            ("stats", "get_push_delivery_stats(30)", None),
            ("purge", "purge of 100", None),
        )
    ]


@click.command(help=__doc__)
@click.option("--rows", default=1_000_000, show_default=True, type=click.IntRange(100_000))
@click.option("--few", default=10_000, show_default=True, type=click.IntRange(10_000))
@click.option("--scheduled", default=1000, show_default=True, type=click.IntRange(1000))
@click.option("--rounds", default=60, show_default=True, type=click.IntRange(10))
@click.option(
    "--directory", type=click.Path(file_okay=False, exists=True, path_type=Path), help="For the data."
)
@click.option("--json", "as_json", is_flag=True)
def main(rows: int, few: int, scheduled: int, rounds: int, directory: Path | None, as_json: bool) -> None:
    small, large = measure(few, rows, rounds, directory, scheduled)
    if as_json:
        figures = {
            "rows": [few, rows],
            "seconds": [small, large],
            "ratio": {k: large[k] / small[k] for k in small},
        }
        click.echo(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
        return
    table = Table("median of one batch", f"{few:,} rows", f"{rows:,} rows", "ratio", caption=rig.machine())
    for what, seconds in small.items():
        table.add_row(
            what, f"{1e3 * seconds:.2f} ms", f"{1e3 * large[what]:.2f} ms", f"{large[what] / seconds:.2f}"
        )
    rig.console.print(table)


if __name__ == "__main__":
    main()
