"""Claims that Postgres forgets in a crash, because their commit does not wait for the disk."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from uuid import UUID, uuid4

import psycopg
import pytest

from listener.emulator import Emulator
from listener.postgres import workers
from listener.postgres.connect import Pool
from listener.postgres.queue import Queue
from listener.postgres.settlements import Fate
from listener.push import Decision, LogLine, Push, Settlement, Status
from tests.support.postgres import Database, Server, Template
from tests.support.service import (
    PATIENCE,
    Row,
    naming,
    pool_of,
    rows_of,
    serving,
    settings_for,
    until_found,
    until_gone,
)

pytestmark = pytest.mark.oldest_postgres

_PIDS = "select pid from pg_stat_activity where backend_type = %s"
_ADD = (
    "insert into push_notifications (device_token, title) select 'phone-' || n, 't' from generate_series(1, %s) n "
    "returning id"
)
_IS_NOTED_FOR_GOOD = (
    "select 1 from push_listener.unwritable_rows where statement = 'settle' and until = 'infinity'"
)
# A crash empties an unlogged table.
_REFUSES_CLAIMS_AFTER_A_CRASH = """
create unlogged table no_crash as select;
create function refuse() returns trigger language plpgsql security definer as
  'begin if not exists (select from public.no_crash) then raise exception $$no$$; end if; return new; end';
create trigger refuse before update on push_notifications for each row
  when (new.status = 'processing' and new.device_token = 'phone-1') execute function refuse();
"""


async def query(database: Database, statement: str, *values: object) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(database.superuser_dsn, autocommit=True) as conn:
        cursor = await conn.execute(statement.encode(), values)
        return await cursor.fetchall() if cursor.description else []


@asynccontextmanager
async def forgetting(database: Database) -> AsyncIterator[None]:
    """What is committed within this without waiting for the disk is gone afterwards: Postgres crashes, and is back.

    Postgres writes such commits to the disk 0.2 s later. The process that does so is stopped first, and then killed.
    A commit of any other session would write them as well. Only an autovacuum could make one, and none may begin.
    """
    writer, launcher = [await _pid_of(database, kind) for kind in ("walwriter", "autovacuum launcher")]
    for pid in (launcher, writer):
        os.kill(pid, signal.SIGSTOP)
    try:
        await until_gone(query, database, _PIDS, "autovacuum worker")
        yield
    finally:
        os.kill(writer, signal.SIGKILL)
        os.kill(launcher, signal.SIGCONT)  # A stopped process would keep Postgres from restarting.
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(psycopg.OperationalError):
                if await query(database, _PIDS, "walwriter") not in ([], [(writer,)]):
                    return
            await asyncio.sleep(0.01)


async def _pid_of(database: Database, kind: str) -> int:
    """Of a process of which there is always one; it may have to start first."""
    async with asyncio.timeout(PATIENCE):
        while not (found := await query(database, _PIDS, kind)):  # noqa: ASYNC110  # Postgres tells nobody
            await asyncio.sleep(0.01)
    ((pid,),) = found
    assert isinstance(pid, int)
    return pid


async def worker(pool: Pool, lease: float = 60.0) -> Queue:
    return Queue(pool, worker_id=await workers.register(pool, "test"), lease=lease, incarnation=uuid4())


async def claim(queue: Queue, limit: int = 10) -> list[Push]:
    """A connection that the crash has ended fails once."""
    while True:
        with suppress(psycopg.OperationalError):
            return await queue.claim(limit)


async def settle(queue: Queue, *pushes: Push, delay: float | None = None) -> list[Fate]:
    while True:
        try:
            return await queue.settlements.settle([_sent(push, delay) for push in pushes])
        except psycopg.errors.LockNotAvailable:
            raise
        except psycopg.OperationalError:
            pass


def _sent(push: Push, delay: float | None = None, message: str = "m") -> Settlement:
    if delay is not None:
        line = LogLine("phone", "failed", {"attempt": push.attempt})
        return Settlement(push.id, push.attempt, Decision(Status.FAILED, delay), [line])
    line = LogLine("phone", "sent", {"attempt": push.attempt, "message_id": message})
    return Settlement(push.id, push.attempt, Decision(Status.SENT, message_id=message), [line])


async def states(database: Database) -> Sequence[tuple[object, ...]]:
    """Status and attempts of each row, and the number of its log rows."""
    return await query(
        database,
        "select status, delivery_attempts, (select count(*) from push_delivery_logs where push_id = p.id) "
        "from push_notifications p order by id",
    )


Life = AsyncIterator[None]
"""A test in three parts: before what is forgotten; what is forgotten; after Postgres is back."""


async def _the_result_of_a_forgotten_claim_is_written(database: Database) -> Life:
    await query(database, _ADD, 3)
    async with pool_of(database.dsn) as pool:
        mine = await worker(pool)
        yield
        pushes = await mine.claim(10)
        yield
        assert await states(database) == [("pending", 0, 0)] * 3
        assert await settle(mine, *pushes) == [Fate.WRITTEN] * 3
        assert await claim(mine) == []
    assert await states(database) == [("sent", 1, 1)] * 3


async def _a_forgotten_claim_of_a_retry_and_of_a_row_whose_lease_had_ended(database: Database) -> Life:
    await query(database, _ADD, 2)
    async with pool_of(database.dsn) as pool:
        before, mine = await worker(pool, lease=0.001), await worker(pool)
        retried, _ = await before.claim(2)
        assert await settle(before, retried, delay=0.0) == [Fate.WRITTEN]
        yield
        pushes = await mine.claim(10)
        yield
        assert {push.attempt for push in pushes} == {2}
        assert sorted(await states(database)) == [("failed", 1, 1), ("processing", 1, 0)]
        assert await settle(mine, *pushes) == [Fate.WRITTEN] * 2
    assert sorted(await states(database)) == [("sent", 2, 1), ("sent", 2, 2)]


async def _a_result_that_is_a_retry_is_written_too(database: Database) -> Life:
    await query(database, _ADD, 1)
    async with pool_of(database.dsn) as pool:
        mine = await worker(pool)
        yield
        pushes = await mine.claim(10)
        yield
        assert await settle(mine, *pushes, delay=0.0) == [Fate.WRITTEN]
        (again,) = await claim(mine)
        assert again.attempt == 2


async def _a_row_that_another_worker_has_claimed_since_is_left_to_it(database: Database) -> Life:
    await query(database, _ADD, 1)
    async with pool_of(database.dsn) as pool:
        first, second = await worker(pool), await worker(pool)
        yield
        lost = await first.claim(10)
        yield
        taken = await claim(second)
        assert [push.attempt for push in taken] == [1]
        assert await settle(first, *lost) == [Fate.TAKEN]
        assert await states(database) == [("processing", 1, 1)]
        assert await settle(second, *taken) == [Fate.WRITTEN]
    assert await states(database) == [("sent", 1, 2)]


async def _a_row_that_the_application_has_cancelled_since_stays_cancelled(database: Database) -> Life:
    ((push_id,),) = await query(database, _ADD, 1)
    async with pool_of(database.dsn) as pool:
        mine = await worker(pool)
        yield
        pushes = await mine.claim(10)
        yield
        assert await query(database, "select cancel_push(%s)", push_id) == [(True,)]
        (fate,) = await settle(mine, *pushes)
        assert fate is not Fate.WRITTEN
    assert [status for status, *_ in await states(database)] == ["cancelled"]


async def _a_row_that_has_expired_since_stays_expired_and_the_log_tells_that_it_was_sent(
    database: Database,
) -> Life:
    await query(database, _ADD, 1)
    async with pool_of(database.dsn) as pool:
        mine = await worker(pool)
        yield
        pushes = await mine.claim(10)
        yield
        await query(database, "update push_notifications set expires_at = now()")
        async with pool_of(database.dsn) as other:
            assert await (await worker(other)).expire(10) == 1
        assert await settle(mine, *pushes) == [Fate.TAKEN]
    assert await states(database) == [("expired", 0, 1)]
    assert await query(database, "select status from push_delivery_logs") == [("sent",)]


async def _each_of_two_requests_has_its_log_row_although_the_attempts_have_the_same_number(
    database: Database,
) -> Life:
    """The first worker may have written its log row already, so it looks for it."""
    await query(database, _ADD, 1)
    async with pool_of(database.dsn) as pool:
        first, second = await worker(pool), await worker(pool)
        yield
        (lost,) = await first.claim(10)
        yield
        (taken,) = await claim(second)
        assert await second.settlements.settle([_sent(taken, message="second")]) == [Fate.WRITTEN]
        for _ in range(2):
            assert await first.settlements.settle([_sent(lost, message="first")], is_retry=True) == [
                Fate.TAKEN
            ]
    messages = await query(database, "select details ->> 'message_id' from push_delivery_logs order by 1")
    assert messages == [("first",), ("second",)]


async def _a_row_that_is_locked_is_not_given_up(database: Database) -> Life:
    """This worker's own claim may hold the lock, or the application. The result waits for the end of that."""
    ((push_id,), _) = await query(database, _ADD, 2)
    async with pool_of(database.dsn) as pool:
        mine = await worker(pool)
        yield
        pushes = await mine.claim(10)
        yield
        async with await psycopg.AsyncConnection.connect(database.superuser_dsn) as application:
            await application.execute("select from push_notifications where id = %s for update", [push_id])
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await settle(mine, *pushes)
        again = [_sent(push) for push in pushes]
        assert await mine.settlements.settle(again, is_retry=True) == [Fate.WRITTEN] * 2
    assert await states(database) == [("sent", 1, 1)] * 2


async def _a_row_that_cannot_be_claimed_again_keeps_no_other(database: Database) -> Life:
    await query(database, _REFUSES_CLAIMS_AFTER_A_CRASH)
    await query(database, _ADD, 3)
    async with pool_of(database.dsn) as pool:
        mine = await worker(pool)
        yield
        pushes = await mine.claim(10)
        yield
        fates = await settle(mine, *pushes)
        assert {push.device_token: fate for push, fate in zip(pushes, fates, strict=True)} == {
            "phone-1": Fate.REFUSED,
            "phone-2": Fate.WRITTEN,
            "phone-3": Fate.WRITTEN,
        }
        await query(database, "drop trigger refuse on push_notifications")
        [refused] = [push for push in pushes if push.device_token == "phone-1"]
        assert await settle(mine, refused) == [Fate.WRITTEN]
    assert [status for status, *_ in await states(database)] == ["sent"] * 3


async def _a_clock_that_has_been_set_back_does_not_matter(database: Database) -> Life:
    """The row is not due yet by the clock of the server that has taken over."""
    await query(database, _ADD, 1)
    async with pool_of(database.dsn) as pool:
        mine = await worker(pool)
        yield
        pushes = await mine.claim(10)
        yield
        await query(database, "update push_notifications set next_attempt_at = now() + interval '1 minute'")
        assert await settle(mine, *pushes) == [Fate.WRITTEN]
    assert await states(database) == [("sent", 1, 1)]


_LIVES = (
    _the_result_of_a_forgotten_claim_is_written,
    _a_forgotten_claim_of_a_retry_and_of_a_row_whose_lease_had_ended,
    _a_result_that_is_a_retry_is_written_too,
    _a_row_that_another_worker_has_claimed_since_is_left_to_it,
    _a_row_that_the_application_has_cancelled_since_stays_cancelled,
    _a_row_that_has_expired_since_stays_expired_and_the_log_tells_that_it_was_sent,
    _each_of_two_requests_has_its_log_row_although_the_attempts_have_the_same_number,
    _a_row_that_is_locked_is_not_given_up,
    _a_row_that_cannot_be_claimed_again_keeps_no_other,
    _a_clock_that_has_been_set_back_does_not_matter,
)


async def test_claims_that_are_forgotten(postgres: Server) -> None:
    """Each has a database of its own, and all of them one crash."""
    async with AsyncExitStack() as stack:
        databases = [stack.enter_context(postgres.database(Template.MIGRATED)) for _ in _LIVES]
        lives = [life(database) for life, database in zip(_LIVES, databases, strict=True)]
        for life in lives:
            await anext(life)
        async with forgetting(databases[0]):
            for life in lives:
                await anext(life)
        for life, make in zip(lives, _LIVES, strict=True):
            with naming(make.__name__):
                assert await anext(life, "over") == "over"


@pytest.mark.parametrize("is_written", [False, True])
async def test_a_row_that_the_application_has_begun_anew_is_not_taken_for_a_forgotten_one(
    database: Database, is_written: bool
) -> None:
    """The application has set the counter back: the push is to be sent once more."""
    await query(database, _ADD, 1)
    async with pool_of(database.dsn) as pool:
        mine = await worker(pool)
        (push,) = await claim(mine)
        if is_written:  # and the answer was lost
            await settle(mine, push)
        await query(
            database,
            "update push_notifications set status = 'pending', delivery_attempts = 0, next_attempt_at = now()",
        )
        fate = Fate.WRITTEN if is_written else Fate.TAKEN
        assert await mine.settlements.settle([_sent(push)], is_retry=is_written) == [fate]
        assert await states(database) == [("pending", 0, 1)]
        assert len(await claim(mine)) == 1


@pytest.mark.newest_postgres
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


@pytest.mark.newest_postgres
async def test_a_push_whose_row_cannot_be_claimed_again_is_not_sent_twice(
    database: Database, emulator: Emulator
) -> None:
    await query(database, _REFUSES_CLAIMS_AFTER_A_CRASH)
    emulator.latency = 2.0
    async with serving(settings_for(database.dsn, emulator)):
        async with forgetting(database):
            ((push_id,),) = await query(database, _ADD, 1)
            await emulator.wait_received(1)
        await until_found(query, database, _IS_NOTED_FOR_GOOD)
        await query(database, "drop trigger refuse on push_notifications")
        row = await _over(database, UUID(str(push_id)))
    assert (row["status"], row["delivery_attempts"]) == ("sent", 1)
    assert emulator.stats()["received"] == 1


async def _over(database: Database, push_id: UUID) -> Row:
    async with rows_of(database.dsn) as rows:
        return await rows.one_over(push_id)
