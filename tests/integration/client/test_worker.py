"""A worker of the application, over both ways in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import product
from uuid import UUID, uuid4

import psycopg
import pytest
import pytest_asyncio

from listener.client import (
    NotAllowed,
    NotFound,
    PendingPush,
    ProcessingCounts,
    PushWorkerClient,
    SendFailed,
    WrongState,
)
from tests.support.client import WAYS, Way, way
from tests.support.postgres import Database
from tests.support.servers import forget_proxies
from tests.support.service import PATIENCE, Rows, naming, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANN = UUID("a0000000-0000-4000-8000-00000000000a")


@pytest.fixture
def rows(shared_rows: Rows) -> Rows:
    return shared_rows


@pytest_asyncio.fixture(loop_scope="module")
async def worker(entry: Way) -> AsyncIterator[PushWorkerClient]:
    async with PushWorkerClient(entry.service()) as client:
        yield client


async def test_fetch_and_mark(worker: PushWorkerClient, rows: Rows) -> None:
    first = await rows.add(device_token="phone", title="t", priority="high", data={"a": 1})
    second = await rows.add(user_id=ANN, title="t", body="b")
    fetched = await worker.fetch_pending(10)
    assert [(each.id, each.device_token, each.user_id, each.data) for each in fetched] == [
        (first, "phone", None, {"a": 1}),
        (second, None, ANN, None),
    ]
    assert [(each.status, each.retry_count, each.delivery_attempts) for each in fetched] == [
        ("processing", 0, 1),
        ("processing", 0, 1),
    ]
    assert "phone" not in repr(fetched[0])
    assert await worker.fetch_pending() == []
    assert await worker.mark_sent(first) == "sent"
    assert await worker.mark_sent(first) == "sent"
    assert await worker.mark_failed(second, "no\x00 signal") == "failed"
    assert (await rows.get(second))["last_error"] == "no signal"


async def test_what_cannot_be_marked(worker: PushWorkerClient, rows: Rows) -> None:
    with pytest.raises(NotFound):
        await worker.mark_sent(uuid4())
    with pytest.raises(WrongState):
        await worker.mark_failed(await rows.add(device_token="phone", title="t"))


async def test_trigger_processing(worker: PushWorkerClient, rows: Rows) -> None:
    await rows.add_many(25)

    async def send(push: PendingPush) -> None:
        number = int(str(push.device_token).partition("-")[2])
        if number == 3:
            raise SendFailed("FCM says no")
        if number == 4:
            raise RuntimeError(f"of {push.device_token}")

    assert await worker.trigger_processing(send, limit=20) == ProcessingCounts(sent=18, failed=2, left=0)
    assert await worker.trigger_processing(send, limit=20) == ProcessingCounts(sent=5)
    errors = {
        row["device_token"]: row["last_error"] for row in (await rows.all()).values() if row["last_error"]
    }
    assert errors == {"phone-3": "FCM says no", "phone-4": "send raised RuntimeError"}


async def test_a_push_that_is_taken_away_meanwhile_is_left(worker: PushWorkerClient, rows: Rows) -> None:
    await rows.add(device_token="phone", title="t")

    async def send(push: PendingPush) -> None:
        await rows.query("delete from push_notifications")

    assert await worker.trigger_processing(send) == ProcessingCounts(left=1)


async def test_polling_goes_on_until_it_is_stopped(entry: Way, worker: PushWorkerClient, rows: Rows) -> None:
    await worker.start_polling(lambda push: asyncio.sleep(0), interval=0.02, limit=10)
    with pytest.raises(RuntimeError, match="polls already"):
        await worker.start_polling(lambda push: asyncio.sleep(0))
    await rows.add_many(25)
    await rows.until(lambda found: {row["status"] for row in found.values()} == {"sent"})
    entry.faults.go_away()
    await until(lambda: entry.faults.attempts() >= 1)
    entry.faults.come_back()
    later = await rows.add(device_token="phone", title="t")
    assert (await rows.one_over(later))["status"] == "sent"
    await worker.stop_polling()
    await worker.stop_polling()
    await rows.add(device_token="phone", title="t")
    await worker.start_polling(lambda push: asyncio.sleep(0), interval=0.02)
    await rows.over()
    await worker.stop_polling()


async def test_stopping_waits_for_what_is_in_work(worker: PushWorkerClient, rows: Rows) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def send(push: PendingPush) -> None:
        begun.set()
        await go_on.wait()

    push_id = await rows.add(device_token="phone", title="t")
    await worker.start_polling(send)
    await asyncio.wait_for(begun.wait(), PATIENCE)
    stopping = asyncio.create_task(worker.stop_polling(PATIENCE))
    go_on.set()
    await stopping
    assert (await rows.get(push_id))["status"] == "sent"


async def test_stopping_does_not_wait_for_ever(worker: PushWorkerClient, rows: Rows) -> None:
    begun = asyncio.Event()

    async def send(push: PendingPush) -> None:
        begun.set()
        await asyncio.Event().wait()

    push_id = await rows.add(device_token="phone", title="t")
    await worker.start_polling(send)
    await asyncio.wait_for(begun.wait(), PATIENCE)
    await worker.stop_polling(0.01)
    assert (await rows.get(push_id))["status"] == "processing"


async def test_what_ends_the_polling_is_told_when_it_is_stopped(entry: Way) -> None:
    worker = PushWorkerClient(entry.anon())
    await worker.start_polling(lambda push: asyncio.sleep(0))
    polling = worker._polling
    assert polling is not None
    await asyncio.wait({polling})
    with pytest.raises(NotAllowed):
        await worker.stop_polling()
    await worker.close()


async def test_stats_in_every_style(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the database are for the sessions that begin then, so each has a way of its own."""
    forget_proxies(monkeypatch)
    connection = await psycopg.AsyncConnection.connect(database.dsn, autocommit=True)
    for name, style in product(WAYS, ("postgres", "postgres_verbose", "iso_8601", "sql_standard")):
        await connection.execute("truncate push_listener.daily_counts")
        await connection.execute(f"alter database {database.name} set intervalstyle = '{style}'".encode())
        with naming(f"{name}, {style}"), way(name, database) as entry:
            async with PushWorkerClient(entry.service()) as worker:
                empty = await worker.get_push_stats()
                assert (empty.total_pushes, empty.avg_delivery_time) == (0, timedelta(0))
                await connection.execute(
                    "insert into push_listener.daily_counts "
                    "(day, error_code, sent, delivered, delivered_timed, delivered_seconds) "
                    "values ((now() at time zone 'UTC')::date, '', 4, 3, 2, 180043.5)"
                )
                stats = await worker.get_push_stats(days=1)
            assert (stats.sent_pushes, stats.delivered_pushes, stats.delivery_rate) == (4, 3, 75.0)
            assert stats.avg_delivery_time == timedelta(hours=25, seconds=21.75)
    await connection.close()


async def test_cleanup(entry: Way, worker: PushWorkerClient, rows: Rows) -> None:
    if entry.name == "rest":
        with pytest.raises(TypeError, match="cleanup needs Direct: Rest can only call functions"):
            await worker.cleanup(timedelta(days=30))
        return
    old = [
        await rows.add(device_token="t", title="t", status=status) for status in ("sent", "dead", "pending")
    ]
    new = await rows.add(device_token="t", title="t", status="sent")
    await rows.query(
        "update push_notifications set next_attempt_at = null where status <> 'pending'; "
        "update push_notifications set updated_at = now() - interval '40 days'"
    )
    await rows.query("update push_notifications set updated_at = now() where id = %(id)s", id=new)
    await rows.query("insert into push_delivery_logs (push_id, status) values (%(id)s, 'sent')", id=old[0])
    assert await worker.cleanup(timedelta(days=30)) == 2
    assert set(await rows.all()) == {old[2], new}
    assert await rows.logs(old[0]) == []
    with pytest.raises(ValueError, match="must not be negative"):
        await worker.cleanup(timedelta(days=-1))
