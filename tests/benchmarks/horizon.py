"""What a transaction that stays open costs the queue: its snapshot keeps every version of every row that changes.

    python -m tests.benchmarks.horizon --rows 200000

Two databases of one Postgres, each with a backlog that is claimed and settled in turn with the other's, with the
statements of push-listener and without requests. In one of them a snapshot is held all the while, as pg_dump or a
forgotten session would; at the end it is let go, and then a VACUUM is made. Autovacuum is off in both. What is shown
is the CPU time of the connections that claim and of those that settle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import click
import psycopg
from rich.table import Table

from listener.postgres import workers
from listener.postgres.connect import Address, Pool, ServicePool
from listener.postgres.queue import Queue
from listener.push import Decision, LogLine, Settlement, Status
from tests.benchmarks import drain, rig

_LEASE_S = 5.0
"""Short: what was in the index as a lease that was to end is in the way of a claim once that time has come."""
_STEPS = 8
_LOADED = 1_000
_SENT = Decision(Status.SENT, message_id="projects/bench/messages/0:1700000000000000%1")


@dataclass(frozen=True, slots=True)
class Step:
    """CPU-milliseconds of Postgres for 1,000 pushes."""

    claim: float
    settle: float


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
        pools = [await stack.enter_async_context(ServicePool(Address(dsn), prepares=True)) for _ in range(2)]
        worker = await workers.register(pools[0], "bench")
        claims, settles = (Queue(pool, worker_id=worker, lease=_LEASE_S) for pool in pools)
        return cls(claims, settles, *[await _backend(pool) for pool in pools])

    async def work(self, pushes: int, batch: int) -> None:
        """Claims and settles so many."""
        for _ in range(pushes // batch):
            claimed = await self.claims.claim(batch)
            if len(claimed) != batch:
                raise rig.BenchmarkFailed(f"a claim of {batch} brought {len(claimed)}")
            results = [
                Settlement(one.id, one.attempt, _SENT, [LogLine(one.device_token, "sent", {"attempt": 1})])
                for one in claimed
            ]
            await self.settles.settle(results)

    def used(self) -> Step:
        """CPU-milliseconds until now."""
        return Step(rig.cpu_seconds(self.claiming) * 1e3, rig.cpu_seconds(self.settling) * 1e3)

    async def step(self, pushes: int, batch: int) -> Step:
        """Works, and tells what that took."""
        before = self.used()
        await self.work(pushes, batch)
        after, thousands = self.used(), pushes / 1e3
        return Step((after.claim - before.claim) / thousands, (after.settle - before.settle) / thousands)


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


async def measure(rows: int, batch: int, shared_buffers: str) -> Found:
    """Step by step, in turns."""
    each = rows // _STEPS // batch * batch
    free, held = [], []
    with rig.postgres(autovacuum="off", max_wal_size="8GB", shared_buffers=shared_buffers) as server:
        dsns = [rig.new_database(server, name) for name in ("free", "held")]
        for dsn in dsns:
            with psycopg.connect(dsn, autocommit=True) as conn:
                for _ in range(-(-each * (_STEPS + 2) // _LOADED)):
                    conn.execute(drain.LOAD.format(rows=_LOADED).encode())
                conn.execute("vacuum analyze")
        async with AsyncExitStack() as stack:
            one, other = [await Worker.start(stack, dsn) for dsn in dsns]
            async with await psycopg.AsyncConnection.connect(dsns[1], autocommit=True) as holder:
                await holder.execute("begin transaction isolation level repeatable read")
                await holder.execute("select from push_notifications limit 1")
                for _ in range(_STEPS):
                    free.append(await one.step(each, batch))
                    held.append(await other.step(each, batch))
            released = await other.step(each, batch)
            with psycopg.connect(dsns[1], autocommit=True) as conn:
                conn.execute("vacuum push_notifications")
            return Found(free, held, released, await other.step(each, batch))


@click.command()
@click.option("--rows", default=200_000, show_default=True, type=click.IntRange(10_000))
@click.option("--batch", default=500, show_default=True, type=click.IntRange(1, 1_000))
@click.option("--shared-buffers", default="128MB", show_default=True, help="Of Postgres.")
def main(rows: int, batch: int, shared_buffers: str) -> None:
    """Claims and settles a backlog with and without an old snapshot, by turns."""
    found = asyncio.run(measure(rows, batch, shared_buffers))
    table = Table(
        title=f"CPU-ms of Postgres for 1,000 pushes, {batch} at a time: {rig.machine()}", title_justify="left"
    )
    for head in ("pushes", "claim", "with a snapshot", "settle", "with a snapshot"):
        table.add_column(head, justify="right")
    for number, (free, held) in enumerate(zip(found.free, found.held, strict=True), 1):
        cells = (free.claim, held.claim, free.settle, held.settle)
        table.add_row(f"up to {rows * number // _STEPS:,}", *(f"{ms:.1f}" for ms in cells))
    table.add_section()
    for what, step in (("when it is gone", found.released), ("after VACUUM", found.vacuumed)):
        table.add_row(what, "", f"{step.claim:.1f}", "", f"{step.settle:.1f}")
    rig.console.print(table)


if __name__ == "__main__":
    main()
