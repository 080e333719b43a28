"""What the indexes for those who look for pushes cost: an insert and a whole push, with them and without.

    python -m tests.benchmarks.lookups --rows 20000

Two databases of one Postgres hold ``--history`` finished pushes of ``--users`` users; in one of them the indexes
push_notifications_user and push_notifications_code have been dropped. In both, in turn, ``--rows`` pushes are
inserted by 32 clients of pgbench, each insert a transaction that waits for the disk, without the triggers that
notify; then they are claimed and settled with the statements of ``push-listener``. Once the pushes are for users,
once for devices, and once for users and all end dead. Each round begins with a checkpoint, after which Postgres logs
each page as a whole when it first changes; ``--no-full-pages`` leaves that out, as if checkpoints were rare.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import click
from psycopg_pool import AsyncConnectionPool
from rich.table import Table

from listener.demo.embedded import EmbeddedPostgres
from listener.postgres import workers
from listener.postgres.queue import Queue
from listener.push import Decision, LogLine, Push, Settlement, Status
from tests.benchmarks import queues, rig
from tests.benchmarks.queues import Installed
from tests.benchmarks.report import ratios

CLIENTS = 32
_BATCH = 500
ARMS = ("without", "with")
KINDS = ("of a user", "of a device", "of a user, dead")
FIGURES = {
    "insert_rate": "inserts a second",
    "insert_wal": "WAL bytes of an insert",
    "push_rate": "pushes a second, claim and settle",
    "push_wal": "WAL bytes of a push, insert to settled",
}
Samples = dict[str, list[float]]

_COUNTS = """
alter table push_notifications enable trigger push_listener_inserted;
alter table push_notifications enable trigger push_listener_count_changed
"""
_INDEXES = "drop index push_notifications_user, push_notifications_code"
_HISTORY = """
insert into push_notifications (user_id, title, body, status, error_code, next_attempt_at, created_at, updated_at,
                                sent_at)
select md5((n %% %(users)s)::text)::uuid, 'Your ride is here', 'Blue estate car, two minutes away', status,
       case status when 'dead' then 'UNREGISTERED' end, null, at, at, at
  from generate_series(1, %(rows)s) n,
       lateral (select case when n %% 20 = 0 then 'dead' else 'sent' end as status,
                       now() - (1 - n / %(rows)s::float8) * interval '60 days' as at) x
"""


@contextmanager
def _arm(server: EmbeddedPostgres, arm: str, history: int, users: int) -> Iterator[Installed]:
    queue = queues.install(queues.LISTENER, server, f"lookups_{arm}")
    with queue.connect() as conn:
        conn.execute(queue.silence.encode())
        if arm == "without":
            conn.execute(_INDEXES)
        conn.execute(_HISTORY, {"rows": history, "users": users})
        conn.execute("vacuum analyze push_notifications")
        conn.execute(_COUNTS)
    yield queue


def _insert(kind: str, users: int) -> str:
    push = queues.Push()
    target = (
        f"user_id) values (md5(((:n)::bigint % {users})::text)::uuid"
        if kind != "of a device"
        else f"device_token) values ({push.token}"
    )
    columns, value = target.split(") values (")
    return (
        f"insert into push_notifications ({columns}, title, body, data) "
        f"values ({value}, {push.title}, {push.body}, {push.data})"
    )


async def _settle_all(dsn: str, rows: int, *, dead: bool) -> None:
    pool = AsyncConnectionPool[Any](dsn, min_size=1, max_size=1, open=False, kwargs={"autocommit": True})
    await pool.open()
    try:
        queue = Queue(pool, worker_id=await workers.register(pool, "bench"), lease=600.0)
        done = 0
        while pushes := await queue.claim(_BATCH):
            await queue.settlements.settle([_ended(push, dead=dead) for push in pushes])
            done += len(pushes)
    finally:
        await pool.close()
    if done != rows:
        raise rig.BenchmarkFailed(f"{done} pushes were settled instead of {rows}")


def _ended(push: Push, *, dead: bool) -> Settlement:
    if dead:
        line = LogLine("token", "failed", {"attempt": 1, "ms": 50, "error_code": "UNREGISTERED"})
        decision = Decision(Status.DEAD, None, True, "UNREGISTERED", "the token is no longer valid")
    else:
        message_id = f"projects/p/messages/{push.id}"
        line = LogLine("token", "sent", {"attempt": 1, "ms": 50, "message_id": message_id})
        decision = Decision(Status.SENT, message_id=message_id)
    return Settlement(push.id, push.attempt, decision, [line])


def _round(queue: Installed, kind: str, rows: int, users: int) -> dict[str, float]:
    each = rows // CLIENTS
    rows = each * CLIENTS
    with queue.connect() as conn:
        conn.execute("checkpoint")
        empty = rig.written(conn)
        rate = rig.pgbench(queue.dsn, _insert(kind, users), clients=CLIENTS, each=each)
        inserted = rig.written(conn)
        started = time.perf_counter()
        asyncio.run(_settle_all(queue.dsn, rows, dead=kind.endswith("dead")))
        seconds = time.perf_counter() - started
        settled = rig.written(conn)
        conn.execute("vacuum push_notifications")
    return {
        "insert_rate": rate,
        "insert_wal": (inserted - empty).wal_bytes / rows,
        "push_rate": rows / seconds,
        "push_wal": (settled - empty).wal_bytes / rows,
    }


def measure(
    rows: int, rounds: int, history: int, users: int, kinds: Sequence[str] = KINDS, *, full_pages: bool = True
) -> dict[str, dict[str, Samples]]:
    """The samples of each figure, by kind of push and by arm."""
    found: dict[str, dict[str, Samples]] = {
        kind: {arm: {figure: [] for figure in FIGURES} for arm in ARMS} for kind in kinds
    }
    with ExitStack() as stack:
        # Autovacuum would come at some time in the one database and not in the other.
        pages = "on" if full_pages else "off"
        server = stack.enter_context(rig.postgres(autovacuum="off", full_page_writes=pages))
        made = {arm: stack.enter_context(_arm(server, arm, history, users)) for arm in ARMS}
        for number in range(-1, rounds):  # the first is to warm up
            for kind in kinds:
                for arm in ARMS if number % 2 else reversed(ARMS):
                    rig.say(f"lookups: {kind}, {arm}, round {number + 1}")
                    for figure, value in _round(made[arm], kind, rows, users).items():
                        if number >= 0:
                            found[kind][arm][figure].append(value)
    return found


@click.command(help=__doc__)
@click.option("--rows", default=20_000, show_default=True, type=click.IntRange(CLIENTS))
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option("--history", default=200_000, show_default=True, type=click.IntRange(1))
@click.option("--users", default=50_000, show_default=True, type=click.IntRange(1))
@click.option("--full-pages/--no-full-pages", default=True, show_default=True)
def main(rows: int, rounds: int, history: int, users: int, full_pages: bool) -> None:
    table = Table("median", "without", "with", "with to without", title=rig.machine())
    for kind, arms in measure(rows, rounds, history, users, full_pages=full_pages).items():
        for figure, what in FIGURES.items():
            before, after = arms["without"][figure], arms["with"][figure]
            table.add_row(
                f"{what}, {kind}",
                f"{statistics.median(before):,.0f}",
                f"{statistics.median(after):,.0f}",
                f"{statistics.median(ratios(after, before)):.2f}",
            )
    rig.console.print(table)


if __name__ == "__main__":
    main()
