"""What a transaction that stays open costs the queue: its snapshot keeps every version of every row that changes.

    python -m tests.benchmarks.horizon --rows 200000
    python -m tests.benchmarks.horizon --sent 1000000 --rows 80000

Two databases of one Postgres, each with a backlog that is claimed and settled in turn with the other's, with the
statements of push-listener and without requests. In one of them a snapshot is held all the while, as pg_dump or a
forgotten session would; at the end it is let go, and then a VACUUM is made. Autovacuum is off in both. What is shown
is the CPU time of the connections that claim and of those that settle. Claims begin where those of a worker would, and
those over the whole range are shown by themselves: that is what every claim would cost if none began later.

With --sent that many pushes have been sent since the snapshot before anything is measured. They are loaded by
statements of 1,000 rows that leave the same entries in the index as a claim and a settle: one at the due time, one at
the end of the lease.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import click
import psycopg
from psycopg_pool import AsyncConnectionPool
from rich.table import Table

from listener.postgres import workers
from listener.postgres.connect import Pool, prepare_session
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
                    configure=prepare_session,
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
            begin = self.claims.frontier.begin_claim(time.monotonic())
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
            await self.settles.settle(results)
        step.settle, step.settled = (rig.cpu_seconds(self.settling) - settling) * 1e3, pushes
        step.seconds = time.monotonic() - began
        return step


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


@click.command()
@click.option("--rows", default=200_000, show_default=True, type=click.IntRange(10_000))
@click.option(
    "--sent",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Pushes sent since the snapshot before.",
)
@click.option("--batch", default=500, show_default=True, type=click.IntRange(1, 1_000))
@click.option("--shared-buffers", default="128MB", show_default=True, help="Of Postgres.")
def main(rows: int, sent: int, batch: int, shared_buffers: str) -> None:
    """Claims and settles a backlog with and without an old snapshot, by turns."""
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
