"""A push to each of 100,000 users in one statement, examples/sql/broadcast.sql, and what others wait meanwhile.

    python -m tests.benchmarks.broadcast

One listener process runs, FCM answers after 50 ms. Two arms, in one database: as many pushes to devices, without users
and keys, inserted by one statement; and the broadcast to users of one device each. In both, high-priority pushes are
inserted 50 a second. Counted is from the moment when Postgres begins with the INSERT of such a push to the arrival of
its request. If a push does not arrive exactly once, this fails.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import click
import psycopg
from rich.table import Table

from tests.benchmarks import queues, rig
from tests.benchmarks.drain import LOAD
from tests.benchmarks.latency import STAMPED, stamp_us
from tests.benchmarks.queues import Installed, Push
from tests.benchmarks.report import quantile
from tests.benchmarks.rig import Arrival

USERS = 100_000
_LATENCY_MS = 50.0
_RATE = 50.0
_PATIENCE = 900.0
_BEFORE_S = 4.0
_BROADCAST = rig.ROOT / "examples" / "sql" / "broadcast.sql"
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
    before_ms: list[float]
    """What each high-priority push waited that was inserted before the statement began."""
    inserting_ms: list[float]
    """While Postgres carried it out."""
    sending_ms: list[float]
    """While its pushes were sent."""


def measure(users: int) -> dict[str, Arm]:
    """One run of both arms."""
    statements = {"to devices": LOAD.format(rows=users), "broadcast": _BROADCAST.read_text()}
    found = {}
    with rig.postgres() as server, rig.sink(_LATENCY_MS) as sink:
        queue = queues.install(queues.LISTENER, server, "broadcast")
        with queue.connect() as conn, queue.worker(sink, {}) as worker:
            conn.execute(_LOAD.format(users=users).encode())
            conn.execute(queue.insert(Push()).replace(":n", "0").encode())
            rig.until(lambda: sink.count() > 0, "no push has come to the sink", by=worker)
            for name, statement in statements.items():
                _all_sent(queue, conn, worker)
                conn.execute("truncate push_notifications, push_delivery_logs")
                conn.execute("vacuum analyze")
                conn.execute("checkpoint")
                sink.reset()
                rig.say(f"broadcast: {users:,} pushes, {name}")
                with _high_priority(queue):
                    time.sleep(_BEFORE_S)
                    began, committed = _insert(conn, statement, users)
                    rig.until(
                        lambda: conn.execute(_LEFT.encode()).fetchone() == (False,),
                        "not all is sent",
                        every=0.1,
                        within=_PATIENCE,
                        by=worker,
                    )
                _all_sent(queue, conn, worker)
                found[name] = _arm(sink.report(), users, began, committed)
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


def _arm(arrivals: Sequence[Arrival], users: int, began: int, committed: int) -> Arm:
    stamped = [(one.at_ns, stamp_us(one.push_id)) for one in arrivals]
    sent = [one for one in arrivals if stamp_us(one.push_id) is None]
    if not len(sent) == len({one.push_id for one in sent}) == users:
        raise rig.BenchmarkFailed(f"{len(sent)} requests came to the sink, {users} were expected")
    first, last = sent[0].at_ns, sent[-1].at_ns

    def waits_ms(begin: int, end: int) -> list[float]:
        return [(at - us * 1000) / 1e6 for at, us in stamped if us is not None and begin <= us * 1000 < end]

    return Arm(
        (committed - began) / 1e9,
        users / ((last - first) / 1e9),
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


@click.command(help=__doc__)
@click.option("--users", default=USERS, show_default=True, type=click.IntRange(100))
def main(users: int) -> None:
    title = rig.machine()
    devices, broadcast = measure(users).values()
    table = Table(f"{users:,} pushes", "to devices", "broadcast", "ratio", title=title)
    rows = [
        ("INSERT, s", devices.insert_s, broadcast.insert_s),
        ("sent a second", devices.sent_per_s, broadcast.sent_per_s),
    ]
    for what, these, those in (
        ("before it", devices.before_ms, broadcast.before_ms),
        ("during the INSERT", devices.inserting_ms, broadcast.inserting_ms),
        ("while it is sent", devices.sending_ms, broadcast.sending_ms),
    ):
        if these and those:
            for share, name in ((0.5, "median"), (0.99, "99 %")):
                rows.append(
                    (f"high priority {what}, {name}, ms", quantile(these, share), quantile(those, share))
                )
    for what, one, other in rows:
        table.add_row(what, f"{one:,.1f}", f"{other:,.1f}", f"{other / one:.2f}")
    rig.console.print(table)


if __name__ == "__main__":
    main()
