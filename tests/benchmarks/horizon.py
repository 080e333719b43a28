"""What a transaction that stays open costs the queue: its snapshot keeps every version of every row that changes.

    python -m tests.benchmarks.horizon --rows 200000
    python -m tests.benchmarks.horizon --sent 1000000 --rows 80000
    python -m tests.benchmarks.horizon --sent 1000000 --workers 4

Two databases of one Postgres, each with a backlog that is claimed and settled in turn with the other's, with the
statements of push-listener and without requests. In one of them a snapshot is held all the while, as pg_dump or a
forgotten session would; at the end it is let go, and then a VACUUM is made. Autovacuum is off in both. What is shown
is the CPU time of the connections that claim and of those that settle. Claims begin where those of a worker would, and
those over the whole range are shown by themselves: that is what every claim would cost if none began later.

With --sent that many pushes have been sent since the snapshot before anything is measured. They are loaded by
statements of 1,000 rows that leave the same entries in the index as a claim and a settle: one at the due time, one at
the end of the lease.

With --workers so many processes of push-listener send what is inserted evenly, from a database with a snapshot. What is
shown is when each push arrives at the sink: those that are inserted while no look beside the claims runs, those that
are while one does, and those that come to lie before what is claimed, by how they do.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field

import click
import psycopg
from psycopg_pool import AsyncConnectionPool
from rich.table import Table

from listener.postgres import workers
from listener.postgres.connect import PLANNING, Connection, Pool, prepare_session
from listener.postgres.queue import Queue
from listener.push import Decision, LogLine, Settlement, Status
from tests.benchmarks import drain, rig
from tests.benchmarks.options import Options
from tests.benchmarks.report import Line, at_most

_LEASE_S = 5.0
"""Short: what was in the index as a lease that was to end is in the way of a claim once that time has come."""
_STEPS = 8
_LOADED = 1_000
_SENT = Decision(Status.SENT, message_id="projects/bench/messages/0:1700000000000000%1")


_AGO_S = 3600
"""How long ago the first of the pushes was due that were sent before."""

# A push as it is inserted, claimed and settled, each in a transaction of its own.
_SEND = """
do $$ declare ids uuid[]; begin
  for part in 0 .. {sent} / 1000 - 1 loop
    with new as (
      insert into push_notifications (device_token, title, body, data, next_attempt_at)
        select repeat('c3kQ7xNw9eo-APA91bF', 8) || lpad(n::text, 11, '0'), 'Your ride is waiting',
               'A blue estate car, number plate 4711, stands at the corner. It waits for 5 min.',
               jsonb_build_object('ride', lpad(n::text, 8, '0'), 'screen', 'ride'),
               now() + make_interval(secs => -{ago} + {ago} / 2.0 * (part * 1000 + n) / {sent})
          from generate_series(1, 1000) n
        returning id)
      select array_agg(id) into ids from new;
    commit;
    update push_notifications set status = 'processing', next_attempt_at = next_attempt_at + interval '5 s',
        delivery_attempts = 1, claimed_by = 1, updated_at = now() where id = any(ids);
    commit;
    update push_notifications set status = 'sent', next_attempt_at = null, sent_at = now(), updated_at = now()
      where id = any(ids);
    commit;
  end loop;
end $$
"""


@dataclass(slots=True)
class Step:
    """CPU-milliseconds of Postgres."""

    claim: float = 0.0
    """For all claims that did not look over the whole range."""
    claimed: int = 0
    """Pushes that these have brought."""
    whole: float = 0.0
    """For all claims that did."""
    wholes: int = 0
    """How many these were."""
    settle: float = 0.0
    settled: int = 0
    seconds: float = 0.0

    @property
    def a_claim(self) -> float:
        """For the claims of 1,000 pushes."""
        return self.claim / self.claimed * 1e3

    @property
    def a_whole(self) -> float:
        """For one claim over the whole range."""
        return self.whole / self.wholes if self.wholes else math.nan

    @property
    def a_settle(self) -> float:
        """For the settles of 1,000 pushes."""
        return self.settle / self.settled * 1e3


@dataclass(frozen=True, slots=True)
class Worker:
    """Claims through one connection and settles through another, whose backends can be told apart."""

    claims: Queue
    settles: Queue
    claiming: int
    settling: int
    """Process ids of the backends."""

    @classmethod
    async def start(cls, stack: AsyncExitStack, dsn: str) -> Worker:
        pools = [
            await stack.enter_async_context(
                AsyncConnectionPool(
                    dsn,
                    min_size=1,
                    max_size=1,
                    open=False,
                    kwargs={"autocommit": True},
                    configure=_prepare,
                )
            )
            for _ in range(2)
        ]
        worker = await workers.register(pools[0], "bench")
        claims, settles = (Queue(pool, worker_id=worker, lease=_LEASE_S) for pool in pools)
        return cls(claims, settles, *[await _backend(pool) for pool in pools])

    async def step(self, pushes: int, batch: int) -> Step:
        """Claims and settles so many, and tells what that took."""
        step, began, settling = Step(), time.monotonic(), rig.cpu_seconds(self.settling)
        for _ in range(pushes // batch):
            if self.claims.frontier.look_behind_in(time.monotonic()) == 0.0:
                await self._look(step)
            begin = self.claims.frontier.begin_claim(time.monotonic(), batch, batch)
            before = rig.cpu_seconds(self.claiming)
            claimed = await self.claims.claim(batch, begin=begin)
            if len(claimed) != batch:
                raise rig.BenchmarkFailed(f"a claim of {batch} brought {len(claimed)}")
            used = (rig.cpu_seconds(self.claiming) - before) * 1e3
            if begin.is_whole:
                step.whole, step.wholes = step.whole + used, step.wholes + 1
            else:
                step.claim, step.claimed = step.claim + used, step.claimed + batch
            results = [
                Settlement(one.id, one.attempt, _SENT, [LogLine(one.device_token, "sent", {"attempt": 1})])
                for one in claimed
            ]
            await self.settles.settlements.settle(results)
        step.settle, step.settled = (rig.cpu_seconds(self.settling) - settling) * 1e3, pushes
        step.seconds = time.monotonic() - began
        return step

    async def _look(self, step: Step) -> None:
        """The look that a worker would make beside the claims."""
        before = rig.cpu_seconds(self.claiming)
        await self.claims.look_behind()
        step.whole, step.wholes = (
            step.whole + (rig.cpu_seconds(self.claiming) - before) * 1e3,
            step.wholes + 1,
        )


async def _prepare(conn: Connection) -> None:
    """As the sessions of the service are prepared."""
    await prepare_session(conn)
    await conn.execute(PLANNING)


async def _backend(pool: Pool) -> int:
    async with pool.connection() as conn:
        return conn.info.backend_pid


@dataclass(frozen=True, slots=True)
class Found:
    free: Sequence[Step]
    held: Sequence[Step]
    released: Step
    """The first pushes after the snapshot was let go."""
    vacuumed: Step
    """Those after a VACUUM."""


async def measure(rows: int, sent: int, batch: int, shared_buffers: str) -> Found:
    """Step by step, in turns."""
    each = rows // _STEPS // batch * batch
    free, held = [], []
    with rig.postgres(autovacuum="off", max_wal_size="8GB", shared_buffers=shared_buffers) as server:
        dsns = [rig.new_database(server, name) for name in ("free", "held")]
        with psycopg.connect(dsns[0], autocommit=True) as conn:
            conn.execute(_SEND.format(sent=sent, ago=_AGO_S).encode())
            conn.execute("vacuum analyze")
        async with AsyncExitStack() as stack:
            holder = await psycopg.AsyncConnection.connect(dsns[1], autocommit=True)
            await stack.enter_async_context(holder)
            await holder.execute("begin transaction isolation level repeatable read")
            await holder.execute("select from push_notifications limit 1")
            with psycopg.connect(dsns[1], autocommit=True) as conn:
                conn.execute(_SEND.format(sent=sent, ago=_AGO_S).encode())
                conn.execute("vacuum analyze")
            for dsn in dsns:
                with psycopg.connect(dsn, autocommit=True) as conn:
                    for _ in range(-(-each * (_STEPS + 2) // _LOADED)):
                        conn.execute(drain.LOAD.format(rows=_LOADED).encode())
                    conn.execute("analyze")
            rig.say("measuring")
            one, other = [await Worker.start(stack, dsn) for dsn in dsns]
            for _ in range(_STEPS):
                free.append(await one.step(each, batch))
                held.append(await other.step(each, batch))
                rig.say(
                    f"a claim of 1,000: {free[-1].a_claim:.1f} ms, with the snapshot {held[-1].a_claim:.1f} ms"
                )
            await holder.close()
            released = await other.step(each, batch)
            with psycopg.connect(dsns[1], autocommit=True) as conn:
                conn.execute("vacuum push_notifications")
            return Found(free, held, released, await other.step(each, batch))


def ratio(found: Found) -> float:
    """What a push costs a claim with the snapshot, to without."""
    free, held = (
        sum(step.claim for step in steps) / sum(step.claimed for step in steps)
        for steps in (found.free, found.held)
    )
    return held / free


def part(options: Options) -> list[Line]:
    """One run."""
    sent = 200_000 if options.quick else 1_000_000
    found = asyncio.run(measure(16_000, sent, 500, "1GB"))
    what = f"claim with {sent:,} pushes sent since the oldest snapshot, to without one"
    return [Line(what, "{:.2f}", [ratio(found)], at_most(1.5))]


# --- workers ------------------------------------------------------------------------------------------------------

_INSERT = "insert into push_notifications (device_token, title) values ('token', 't') returning id"
_INSERT_EARLY = (
    "insert into push_notifications (device_token, title, next_attempt_at) "
    "values ('token', 't', now() - interval '10 min') returning id"
)
_LOOKING = """
select count(*) from pg_stat_activity
  where state = 'active' and query like '%next_attempt_at < pg_catalog.to_timestamp%' and query not like '%for no key%'
    and pid <> pg_backend_pid()
"""
_LATE = {"scheduled for 10 min ago": 0.0, "of a transaction of 3 s": 3.0, "of a transaction of 20 s": 20.0}
"""Ways to come to lie before what is claimed, and for how long the transaction is open."""


@dataclass(slots=True)
class Late:
    """Seconds from the commit to the request, of pushes that several connections insert."""

    pushes: dict[str, float] = field(default_factory=dict)
    """When those were committed that are inserted evenly, by id."""
    looking: list[tuple[float, float]] = field(default_factory=list)
    """When looks beside the claims were seen running."""
    early: list[tuple[str, str, float]] = field(default_factory=list)
    """Those that come to lie before: how, id, and when each was committed."""


def _insert(dsn: str, found: Late, each: float, stop: threading.Event) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        while not stop.wait(each):
            row = conn.execute(_INSERT).fetchone()
            assert row is not None
            found.pushes[str(row[0])] = time.time()


def _insert_early(dsn: str, found: Late, how: str, stop: threading.Event) -> None:
    with psycopg.connect(dsn) as conn:
        while not stop.wait(1.0):
            row = conn.execute(_INSERT if _LATE[how] else _INSERT_EARLY).fetchone()
            assert row is not None
            if stop.wait(_LATE[how]):
                return
            conn.commit()
            found.early.append((how, str(row[0]), time.time()))


def _watch(dsn: str, found: Late, stop: threading.Event) -> None:
    since: float | None = None
    with psycopg.connect(dsn, autocommit=True) as conn:
        while not stop.wait(0.02):
            row = conn.execute(_LOOKING.encode()).fetchone()
            assert row is not None
            if row[0] and since is None:
                since = time.time()
            if not row[0] and since is not None:
                found.looking.append((since, time.time()))
                since = None


def work(dsn: str, workers: int, seconds: float, rate: float) -> None:
    """Sends for so long, and shows what arrived when."""
    found, stop = Late(), threading.Event()
    with ExitStack() as stack:
        sink = stack.enter_context(rig.sink())
        for _ in range(workers):
            command = [sys.executable, "-m", "listener", "run"]
            stack.enter_context(rig.program(command, environment=rig.listener_environment(dsn, sink)))
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(_INSERT)
        rig.until(lambda: sink.count() > 0, "nothing was sent", within=120.0)
        time.sleep(15.0)  # until every worker knows how long a look takes
        threads = [
            threading.Thread(target=_insert, args=(dsn, found, 1.0 / rate, stop)),
            threading.Thread(target=_watch, args=(dsn, found, stop)),
            *(threading.Thread(target=_insert_early, args=(dsn, found, how, stop)) for how in _LATE),
        ]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        stop.set()
        for thread in threads:
            thread.join()
        due = set(found.pushes) | {push_id for _, push_id, _ in found.early}
        rig.until(
            lambda: due <= {each.push_id for each in sink.report()},
            "pushes are missing",
            within=120.0,
            every=1.0,
        )
        arrived = {each.push_id: each.at_ns / 1e9 for each in sink.report()}
    _show(found, arrived, workers, seconds)


def _show(found: Late, arrived: dict[str, float], workers: int, seconds: float) -> None:
    took: dict[str, list[float]] = {"while no look runs": [], "while a look beside the claims runs": []}
    for push_id, at in found.pushes.items():
        looks = any(first <= at <= last for first, last in found.looking)
        took["while a look beside the claims runs" if looks else "while no look runs"].append(
            arrived[push_id] - at
        )
    for how, push_id, at in found.early:
        took.setdefault(how, []).append(arrived[push_id] - at)
    running = sum(last - first for first, last in found.looking) / seconds
    table = Table(
        title=f"Seconds from commit to request, {workers} workers; looks beside the claims run for {running:.0%} of "
        f"the time: {rig.machine()}",
        title_justify="left",
    )
    for head in ("pushes", "number", "p50", "p99", "max"):
        table.add_column(head, justify="left" if head == "pushes" else "right")
    for how, each in took.items():
        if each:
            ordered = sorted(each)
            p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
            table.add_row(
                how, str(len(each)), *(f"{v:.3f}" for v in (statistics.median(each), p99, ordered[-1]))
            )
    rig.console.print(table)


def send(sent: int, workers: int, seconds: float, rate: float, shared_buffers: str) -> None:
    """Makes a database with a snapshot, and works on it."""
    with rig.postgres(autovacuum="off", max_wal_size="8GB", shared_buffers=shared_buffers) as server:
        dsn = rig.new_database(server, "held")
        with psycopg.connect(dsn, autocommit=True) as holder, psycopg.connect(dsn, autocommit=True) as conn:
            holder.execute("begin transaction isolation level repeatable read")
            holder.execute("select from push_notifications limit 1")
            conn.execute(_SEND.format(sent=sent, ago=_AGO_S).encode())
            conn.execute("vacuum analyze")
            rig.say("measuring")
            work(dsn, workers, seconds, rate)


@click.command()
@click.option("--rows", default=200_000, show_default=True, type=click.IntRange(10_000))
@click.option(
    "--sent",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Pushes sent since the snapshot before.",
)
@click.option(
    "--workers", default=0, type=click.IntRange(0), help="Processes that send; 0: claims alone are measured."
)
@click.option("--seconds", default=60.0, show_default=True, help="For which workers send.")
@click.option(
    "--rate", default=100.0, show_default=True, help="Pushes a second that are inserted for workers."
)
@click.option("--batch", default=500, show_default=True, type=click.IntRange(1, 1_000))
@click.option("--shared-buffers", default="128MB", show_default=True, help="Of Postgres.")
def main(
    rows: int, sent: int, workers: int, seconds: float, rate: float, batch: int, shared_buffers: str
) -> None:
    """Claims and settles a backlog with and without an old snapshot, by turns."""
    if workers:
        send(sent, workers, seconds, rate, shared_buffers)
        return
    found = asyncio.run(measure(rows, sent, batch, shared_buffers))
    table = Table(
        title=f"CPU-ms of Postgres, with (*) and without a snapshot, {batch} at a time: {rig.machine()}",
        title_justify="left",
    )
    heads = (
        "pushes since",
        "claim 1,000",
        "*",
        "ratio",
        "whole claim",
        "*",
        "a second *",
        "settle 1,000",
        "*",
    )
    for head in heads:
        table.add_column(head, justify="right")
    for number, (free, held) in enumerate(zip(found.free, found.held, strict=True), 1):
        dearer = held.a_claim / free.a_claim
        cells = (free.a_claim, held.a_claim, dearer, free.a_whole, held.a_whole, held.wholes / held.seconds)
        table.add_row(
            f"up to {sent + rows * number // _STEPS:,}",
            *(f"{value:.2f}" if value is dearer else f"{value:.1f}" for value in cells),
            f"{free.a_settle:.1f}",
            f"{held.a_settle:.1f}",
        )
    table.add_section()
    for what, step in (("when it is gone", found.released), ("after VACUUM", found.vacuumed)):
        table.add_row(
            what, "", f"{step.a_claim:.1f}", "", "", f"{step.a_whole:.1f}", "", "", f"{step.a_settle:.1f}"
        )
    rig.console.print(table)
    rig.console.print(f"claims with a snapshot against without, all together: {ratio(found):.2f}")


if __name__ == "__main__":
    main()
