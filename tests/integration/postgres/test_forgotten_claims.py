"""Claims that Postgres forgets in a crash, because their commit does not wait for the disk."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from uuid import UUID, uuid4

import psycopg
import pytest

from listener.emulator import Emulator
from listener.postgres import workers
from listener.postgres.connect import Pool
from listener.postgres.queue import Fate, Queue
from listener.push import Decision, LogLine, Push, Settlement, Status
from tests.support.postgres import Database
from tests.support.service import PATIENCE, Row, pool_of, rows_of, serving, settings_for

pytestmark = pytest.mark.oldest_postgres

_WAL_WRITER = "select pid from pg_stat_activity where backend_type = 'walwriter'"
_ADD = (
    "insert into push_notifications (device_token, title) select 'phone-' || n, 't' from generate_series(1, %s) n "
    "returning id"
)


async def query(database: Database, statement: str, *values: object) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(database.superuser_dsn, autocommit=True) as conn:
        cursor = await conn.execute(statement.encode(), values)
        return await cursor.fetchall() if cursor.description else []


@asynccontextmanager
async def forgetting(database: Database) -> AsyncIterator[None]:
    """What is committed within this without waiting for the disk is gone afterwards: Postgres crashes, and is back.

    Postgres writes such commits to the disk 0.2 s later. The process that does so is stopped first, and then killed.
    """
    ((pid,),) = await query(database, _WAL_WRITER)
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(psycopg.OperationalError):
                if await query(database, _WAL_WRITER) not in ([], [(pid,)]):
                    return
            await asyncio.sleep(0.01)


async def worker(pool: Pool, lease: float = 60.0) -> Queue:
    return Queue(pool, worker_id=await workers.register(pool, "test"), lease=lease, incarnation=uuid4())


async def claim(queue: Queue, limit: int = 10) -> list[Push]:
    """A connection that the crash has ended fails once."""
    while True:
        with suppress(psycopg.OperationalError):
            return await queue.claim(limit)


async def settle(queue: Queue, *pushes: Push, delay: float | None = None) -> list[Fate]:
    while True:
        with suppress(psycopg.OperationalError):
            return await queue.settle([_sent(push, delay) for push in pushes])


def _sent(push: Push, delay: float | None) -> Settlement:
    status = Status.SENT if delay is None else Status.FAILED
    line = LogLine("phone", "sent" if delay is None else "failed", {"attempt": push.attempt})
    return Settlement(push.id, push.attempt, Decision(status, delay), [line])


async def states(database: Database) -> Sequence[tuple[object, ...]]:
    """Status and attempts of each row, and the number of its log rows."""
    return await query(
        database,
        "select status, delivery_attempts, (select count(*) from push_delivery_logs where push_id = p.id) "
        "from push_notifications p order by id",
    )


async def test_the_result_of_a_forgotten_claim_is_written(database: Database) -> None:
    await query(database, _ADD, 3)
    async with pool_of(database.dsn) as pool:
        mine = await worker(pool)
        async with forgetting(database):
            pushes = await mine.claim(10)
        assert await states(database) == [("pending", 0, 0)] * 3
        assert await settle(mine, *pushes) == [Fate.WRITTEN] * 3
        assert await claim(mine) == []
    assert await states(database) == [("sent", 1, 1)] * 3


async def test_a_forgotten_claim_of_a_retry_and_of_a_row_whose_lease_had_ended(database: Database) -> None:
    await query(database, _ADD, 2)
    async with pool_of(database.dsn) as pool:
        before, mine = await worker(pool, lease=0.001), await worker(pool)
        retried, _ = await before.claim(2)
        assert await settle(before, retried, delay=0.0) == [Fate.WRITTEN]
        async with forgetting(database):
            pushes = await mine.claim(10)
        assert {push.attempt for push in pushes} == {2}
        assert sorted(await states(database)) == [("failed", 1, 1), ("processing", 1, 0)]
        assert await settle(mine, *pushes) == [Fate.WRITTEN] * 2
    assert sorted(await states(database)) == [("sent", 2, 1), ("sent", 2, 2)]


async def test_a_result_that_is_a_retry_is_written_too(database: Database) -> None:
    await query(database, _ADD, 1)
    async with pool_of(database.dsn) as pool:
        mine = await worker(pool)
        async with forgetting(database):
            pushes = await mine.claim(10)
        assert await settle(mine, *pushes, delay=0.0) == [Fate.WRITTEN]
        (again,) = await claim(mine)
        assert again.attempt == 2


async def test_a_row_that_another_worker_has_claimed_since_is_left_to_it(database: Database) -> None:
    await query(database, _ADD, 1)
    async with pool_of(database.dsn) as pool:
        first, second = await worker(pool), await worker(pool)
        async with forgetting(database):
            lost = await first.claim(10)
        taken = await claim(second)
        assert [push.attempt for push in taken] == [1]
        assert await settle(first, *lost) == [Fate.TAKEN]
        assert await states(database) == [("processing", 1, 1)]
        assert await settle(second, *taken) == [Fate.WRITTEN]
    assert await states(database) == [("sent", 1, 2)]


async def test_a_row_that_the_application_has_cancelled_since_stays_cancelled(database: Database) -> None:
    ((push_id,),) = await query(database, _ADD, 1)
    async with pool_of(database.dsn) as pool:
        mine = await worker(pool)
        async with forgetting(database):
            pushes = await mine.claim(10)
        assert await query(database, "select cancel_push(%s)", push_id) == [(True,)]
        (fate,) = await settle(mine, *pushes)
        assert fate is not Fate.WRITTEN
    assert [status for status, *_ in await states(database)] == ["cancelled"]


async def test_a_push_that_is_under_way_is_not_sent_again_by_its_worker(
    database: Database, emulator: Emulator
) -> None:
    """The worker claims as soon as Postgres is back, and finds the push due."""
    emulator.latency = 2.0
    async with serving(settings_for(database.dsn, emulator)):
        async with forgetting(database):
            ((push_id,),) = await query(
                database,
                "insert into push_notifications (device_token, title) values ('phone', 't') returning id",
            )
            await emulator.wait_received(1)
        row = await _over(database, UUID(str(push_id)))
    assert (row["status"], row["delivery_attempts"], row["lost_claims"]) == ("sent", 1, 0)
    assert emulator.stats()["duplicates"] == 0


async def _over(database: Database, push_id: UUID) -> Row:
    async with rows_of(database.dsn) as rows:
        return await rows.one_over(push_id)
