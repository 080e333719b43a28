"""A push to each of 100,000 users in one statement, examples/sql/broadcast.sql, and what others wait meanwhile.

    python -m tests.benchmarks.broadcast

Each user has one device. One listener process runs, FCM answers after 50 ms. First as many pushes to devices, without
users and keys, are inserted by one statement and sent: what the broadcast is compared with. High-priority pushes are
inserted 50 a second before the broadcast, while Postgres carries out its INSERT, and while it is sent. Counted is from
the moment when Postgres begins with the INSERT of such a push to the arrival of its request. If a user does not get the
push exactly once, this fails.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import click
import psycopg
from rich.table import Table

from tests.benchmarks import queues, rig
from tests.benchmarks.drain import LOAD
from tests.benchmarks.latency import STAMPED, stamp_us
from tests.benchmarks.queues import Push
from tests.benchmarks.report import quantile
from tests.benchmarks.rig import Arrival

USERS = 100_000
_LATENCY_MS = 50.0
_RATE = 50.0
_PATIENCE = 900.0
_BEFORE_S = 5.0
_BROADCAST = rig.ROOT / "examples" / "sql" / "broadcast.sql"
_LOAD = """
create table public.profiles (id uuid primary key default gen_random_uuid(), wants_news boolean not null default true);
insert into public.profiles select from generate_series(1, {users});
insert into public.push_devices (token, user_id, platform)
  select repeat('c3kQ7xNw9eo-APA91bF', 8) || id, id, 'android' from public.profiles
"""


@dataclass(frozen=True, slots=True)
class Rate:
    insert_s: float
    """Of the statement, with its commit."""
    sent_per_s: float
    """From the first request to the last."""


@dataclass(frozen=True, slots=True)
class Found:
    devices: Rate
    """Pushes to devices."""
    broadcast: Rate
    before_ms: list[float]
    """What each high-priority push waited that was inserted before the broadcast."""
    inserting_ms: list[float]
    """While Postgres carried out its INSERT."""
    sending_ms: list[float]
    """While it was sent."""


def measure(users: int, seconds: int) -> Found:
    """One run; for so many ``seconds`` high-priority pushes are inserted, of which the broadcast may take a part."""
    with rig.postgres() as server, rig.sink(_LATENCY_MS) as sink, ThreadPoolExecutor() as threads:
        queue = queues.install(queues.LISTENER, server, "broadcast")
        with queue.connect() as conn, queue.worker(sink, {}) as worker:

            def all_sent() -> None:
                rig.until(
                    lambda: queue.pending(conn) == 0,
                    "not all is sent",
                    every=0.1,
                    within=_PATIENCE,
                    by=worker,
                )

            conn.execute(_LOAD.format(users=users).encode())
            conn.execute(queue.insert(Push()).replace(":n", "0").encode())
            rig.until(lambda: sink.count() > 0, "no push has come to the sink", by=worker)
            all_sent()
            _tidy(conn)
            sink.reset()
            rig.say(f"broadcast: pushes to {users:,} devices")
            began, committed = _insert(conn, LOAD.format(rows=users), users)
            all_sent()
            devices = _rate(began, committed, sink.report())
            _tidy(conn)
            sink.reset()
            statement = queue.insert(Push(id=STAMPED, priority="'high'"))
            high = threads.submit(rig.pgbench, queue.dsn, statement, clients=4, seconds=seconds, rate=_RATE)
            time.sleep(_BEFORE_S)
            rig.say(f"broadcast: to {users:,} users")
            began, committed = _insert(conn, _BROADCAST.read_text(), users)
            high.result()
            all_sent()
        arrivals = sink.report()
    sent = [one for one in arrivals if stamp_us(one.push_id) is None]
    if not len(sent) == len({one.push_id for one in sent}) == users:
        raise rig.BenchmarkFailed(f"{len(sent)} requests came to the sink for {users} users")
    last = sent[-1].at_ns

    def waits_ms(begin: int, end: int) -> list[float]:
        stamped = [(one.at_ns, stamp_us(one.push_id)) for one in arrivals]
        return [(at - us * 1000) / 1e6 for at, us in stamped if us is not None and begin <= us * 1000 < end]

    return Found(
        devices,
        _rate(began, committed, sent),
        before_ms=waits_ms(0, began),
        inserting_ms=waits_ms(began, committed),
        sending_ms=waits_ms(committed, last),
    )


def _tidy(conn: psycopg.Connection) -> None:
    """As after a while of work: nothing left over, and the planner knows the tables."""
    conn.execute("truncate push_notifications, push_delivery_logs")
    conn.execute("vacuum analyze")
    conn.execute("checkpoint")


def _insert(conn: psycopg.Connection, statement: str, rows: int) -> tuple[int, int]:
    """When it began and when it was committed, in nanoseconds of Unix time."""
    began = time.time_ns()
    inserted = conn.execute(statement.encode()).rowcount
    if inserted != rows:
        raise rig.BenchmarkFailed(f"{inserted} pushes were inserted, and not {rows}")
    return began, time.time_ns()


def _rate(began: int, committed: int, arrivals: Sequence[Arrival]) -> Rate:
    seconds = (arrivals[-1].at_ns - arrivals[0].at_ns) / 1e9
    return Rate((committed - began) / 1e9, len(arrivals) / seconds)


@click.command(help=__doc__)
@click.option("--users", default=USERS, show_default=True, type=click.IntRange(2))
@click.option("--seconds", default=40, show_default=True, type=click.IntRange(6))
def main(users: int, seconds: int) -> None:
    title = rig.machine()
    found = measure(users, seconds)
    table = Table(f"{users:,} pushes", "to devices", "broadcast", "ratio", title=title)
    for what, one, other, form in (
        ("INSERT, seconds", found.devices.insert_s, found.broadcast.insert_s, ".2f"),
        ("sent a second", found.devices.sent_per_s, found.broadcast.sent_per_s, ",.0f"),
    ):
        table.add_row(what, format(one, form), format(other, form), f"{other / one:.2f}")
    rig.console.print(table)
    table = Table("high-priority pushes", "how many", "median, ms", "99 %, ms", "median to before")
    for what, waits in (
        ("before the broadcast", found.before_ms),
        ("during its INSERT", found.inserting_ms),
        ("while it is sent", found.sending_ms),
    ):
        if waits:
            median = quantile(waits, 0.5)
            table.add_row(
                what,
                str(len(waits)),
                f"{median:.1f}",
                f"{quantile(waits, 0.99):.1f}",
                f"{median / quantile(found.before_ms, 0.5):.1f}",
            )
    rig.console.print(table)


if __name__ == "__main__":
    main()
