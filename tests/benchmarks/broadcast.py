"""A push to each of 100,000 users in one statement, examples/sql/broadcast.sql, and what others wait meanwhile.

    python -m tests.benchmarks.broadcast
    python -m tests.benchmarks.broadcast --users 0 --rows 1000000

One listener process runs, FCM answers after 50 ms. Three arms, in one database, each of one statement: as many pushes
to devices, without users and keys; the rows of the broadcast, but with the token of the user's device; and the
broadcast to users of one device each. With --rows there is a fourth, or with --users 0 the only one: that many pushes
to devices. In all of them, high-priority pushes are inserted 50 a second. Counted is from the moment when Postgres
begins with the INSERT of such a push to the arrival of its request. If a push does not arrive exactly once, this fails.

The CPU time of Postgres is of all its processes, from the commit until all is settled, for each push of normal
priority. It includes what the high-priority pushes take, in each of the arms.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import click
import psycopg
from rich.table import Table

from tests.benchmarks import queues, rig
from tests.benchmarks.backlog import memory
from tests.benchmarks.drain import LOAD
from tests.benchmarks.latency import STAMPED, stamp_us
from tests.benchmarks.options import Options
from tests.benchmarks.queues import Installed, Push
from tests.benchmarks.report import Depends, Line, at_most, quantile
from tests.benchmarks.rig import Arrival

USERS = 100_000
DEVICES, SAME, BROADCAST, ROWS = "to devices", "same rows, to devices", "broadcast", "in one INSERT"
_LATENCY_MS = 50.0
_RATE = 50.0
_PATIENCE = 900.0
_BEFORE_S = 4.0
_BROADCAST = rig.ROOT / "examples" / "sql" / "broadcast.sql"
_SAME_ROWS = """
insert into public.push_notifications
    (device_token, user_id, title, body, data, channel, expires_at, idempotency_key)
  select d.token, d.user_id, 'The summer sale begins', 'Everything at half price until Sunday',
         '{"screen": "sale"}', 'news', now() + interval '12 hours', 'summer-sale-' || d.user_id
    from public.push_devices d
"""
_LOAD = """
create table public.profiles (id uuid primary key default gen_random_uuid(), wants_news boolean not null default true);
insert into public.profiles select from generate_series(1, {users});
insert into public.push_devices (token, user_id, platform)
  select repeat('c3kQ7xNw9eo-APA91bF', 8) || id, id, 'android' from public.profiles
"""
# As the index of the queue has it.
_LEFT = """
select exists (select from push_notifications
  where (case priority::text when 'high' then 0 else 1 end) = 1
    and next_attempt_at is not null and status in ('pending', 'processing', 'failed'))
"""


@dataclass(frozen=True, slots=True)
class Arm:
    insert_s: float
    """Of the statement, with its commit."""
    sent_per_s: float
    """From the first request to the last."""
    postgres_us: float
    """CPU time for each push, from the commit until all is settled."""
    peak_mb: float
    """Of the memory of the process."""
    before_ms: list[float]
    """What each high-priority push waited that was inserted before the statement began."""
    inserting_ms: list[float]
    """While Postgres carried it out."""
    sending_ms: list[float]
    """While its pushes were sent."""


_FIGURES: dict[str, Callable[[Arm], float]] = {
    "INSERT, s": lambda arm: arm.insert_s,
    "sent a second": lambda arm: arm.sent_per_s,
    "Postgres' CPU for each, us": lambda arm: arm.postgres_us,
    "memory of the process, most, MB": lambda arm: arm.peak_mb,
}
_WAITS: dict[str, Callable[[Arm], list[float]]] = {
    "before it": lambda arm: arm.before_ms,
    "during the INSERT": lambda arm: arm.inserting_ms,
    "while it is sent": lambda arm: arm.sending_ms,
}


def measure(users: int, rows: int = 0, settings: Mapping[str, str] | None = None) -> dict[str, Arm]:
    """One run of each arm."""
    statements = {}
    if users:
        statements[DEVICES] = users, LOAD.format(rows=users)
        statements[SAME] = users, _SAME_ROWS
        statements[BROADCAST] = users, _BROADCAST.read_text()
    if rows:
        statements[ROWS] = rows, LOAD.format(rows=rows)
    found = {}
    with rig.postgres() as server, rig.sink(_LATENCY_MS) as sink:
        queue = queues.install(queues.LISTENER, server, "broadcast")
        with queue.connect() as conn, queue.worker(sink, settings or {}) as worker:
            conn.execute(_LOAD.format(users=users).encode())
            conn.execute(queue.insert(Push()).replace(":n", "0").encode())
            rig.until(lambda: sink.count() > 0, "no push has come to the sink", by=worker)
            for name, (pushes, statement) in statements.items():
                _all_sent(queue, conn, worker)
                conn.execute("truncate push_notifications, push_delivery_logs")
                conn.execute("vacuum analyze")
                conn.execute("checkpoint")
                sink.reset()
                rig.say(f"broadcast: {pushes:,} pushes, {name}")
                with memory(worker) as rss_mb, _high_priority(queue):
                    time.sleep(_BEFORE_S)
                    began, committed = _insert(conn, statement, pushes)
                    cpu = -rig.tree_cpu_seconds(server.pid)
                    rig.until(
                        lambda: conn.execute(_LEFT.encode()).fetchone() == (False,),
                        "not all is sent",
                        every=0.1,
                        within=_PATIENCE,
                        by=worker,
                    )
                    cpu += rig.tree_cpu_seconds(server.pid)
                _all_sent(queue, conn, worker)
                found[name] = _arm(sink.report(), pushes, began, committed, cpu, max(rss_mb))
    return found


def _all_sent(queue: Installed, conn: psycopg.Connection, worker: subprocess.Popen[str]) -> None:
    rig.until(lambda: queue.pending(conn) == 0, "not all is sent", every=0.1, within=_PATIENCE, by=worker)


@contextmanager
def _high_priority(queue: Installed) -> Iterator[None]:
    """Inserts them until the block ends, and a little longer."""
    statement = queue.insert(Push(id=STAMPED, priority="'high'"))
    over = threading.Event()

    def insert() -> None:
        while not over.is_set():
            rig.pgbench(queue.dsn, statement, clients=4, seconds=1, rate=_RATE)

    with ThreadPoolExecutor(1) as thread:
        inserting = thread.submit(insert)
        try:
            yield
        finally:
            over.set()
        inserting.result()


def _arm(
    arrivals: Sequence[Arrival], pushes: int, began: int, committed: int, cpu: float, peak_mb: float
) -> Arm:
    stamped = [(one.at_ns, stamp_us(one.push_id)) for one in arrivals]
    sent = [one for one in arrivals if stamp_us(one.push_id) is None]
    if not len(sent) == len({one.push_id for one in sent}) == pushes:
        raise rig.BenchmarkFailed(f"{len(sent)} requests came to the sink, {pushes} were expected")
    first, last = sent[0].at_ns, sent[-1].at_ns

    def waits_ms(begin: int, end: int) -> list[float]:
        return [(at - us * 1000) / 1e6 for at, us in stamped if us is not None and begin <= us * 1000 < end]

    return Arm(
        (committed - began) / 1e9,
        pushes / ((last - first) / 1e9),
        cpu * 1e6 / pushes,
        peak_mb,
        before_ms=waits_ms(0, began),
        inserting_ms=waits_ms(began, committed),
        sending_ms=waits_ms(committed, last),
    )


def _insert(conn: psycopg.Connection, statement: str, rows: int) -> tuple[int, int]:
    """When it began and when it was committed, in nanoseconds of Unix time."""
    began = time.time_ns()
    inserted = conn.execute(statement.encode()).rowcount
    if inserted != rows:
        raise rig.BenchmarkFailed(f"{inserted} pushes were inserted, and not {rows}")
    return began, time.time_ns()


def part(options: Options) -> list[Line]:
    """One run."""
    users, rows = (20_000, 100_000) if options.quick else (USERS, 1_000_000)
    return broadcast_lines(measure(users, rows, options.settings), rows)


def broadcast_lines(found: Mapping[str, Arm], rows: int) -> list[Line]:
    """The figures of all four arms; ``rows``: pushes of the last one."""
    devices, same, broadcast, many = found[DEVICES], found[SAME], found[BROADCAST], found[ROWS]
    one_insert = f"one INSERT of {rows:,}"
    lines = [
        Line(
            "Postgres' CPU of a push, to users against the same rows to devices",
            "{:.2f}",
            [broadcast.postgres_us / same.postgres_us],
            at_most(1.2),
        ),
        Line(
            "Postgres' CPU of a push, to users against to devices without users and keys",
            "{:.2f}",
            [broadcast.postgres_us / devices.postgres_us],
        ),
        Line(
            "pushes a second, to users against to devices",
            "{:.2f}",
            [broadcast.sent_per_s / devices.sent_per_s],
            more_is_better=True,
        ),
        Line(
            f"{one_insert}: pushes a second",
            "{:,.0f}",
            [many.sent_per_s],
            depends=Depends.CPU,
            more_is_better=True,
        ),
        Line(f"{one_insert}: memory of the process, most", "{:.0f} MB", [many.peak_mb], at_most(150)),
    ]
    for what, waits in (("during it", many.inserting_ms), ("while it is sent", many.sending_ms)):
        if waits:
            for share, name, goal in ((0.5, "median", None), (0.99, "99 %", at_most(100))):
                lines.append(
                    Line(
                        f"{one_insert}: high priority {what}, {name}",
                        "{:.1f} ms",
                        [quantile(waits, share)],
                        goal,
                        depends=Depends.CPU,
                    )
                )
    return lines


@click.command(help=__doc__)
@click.option("--users", default=USERS, show_default=True, type=click.IntRange(0))
@click.option("--rows", default=0, show_default=True, type=click.IntRange(0))
def main(users: int, rows: int) -> None:
    if not users and not rows:
        raise click.UsageError("nothing to measure: give --users or --rows")
    title = rig.machine()
    found = measure(users, rows)
    table = Table("", *found, title=title)
    table.add_row("pushes", *(f"{rows if name == ROWS else users:,}" for name in found))
    for what, figure in _FIGURES.items():
        table.add_row(what, *(f"{figure(arm):,.1f}" for arm in found.values()))
    for what, waits in _WAITS.items():
        for share, name in ((0.5, "median"), (0.99, "99 %")):
            cells = (
                f"{quantile(values, share):,.1f}" if (values := waits(arm)) else "" for arm in found.values()
            )
            table.add_row(f"high priority {what}, {name}, ms", *cells)
    rig.console.print(table)
    if users:
        for name in (SAME, DEVICES):
            ratio = found[BROADCAST].postgres_us / found[name].postgres_us
            rig.console.print(f"Postgres' CPU of a push, broadcast against {name}: {ratio:.2f}")


if __name__ == "__main__":
    main()
