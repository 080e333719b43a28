"""What lies before the place where a worker begins to look is found, with a transaction that keeps an old snapshot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast
from uuid import UUID

import pytest

from listener.postgres import workers
from listener.postgres.frontier import Frontier
from listener.postgres.locks import LIVENESS_CLASS
from listener.postgres.queue import Queue
from listener.wakeup.peers import PeerWatch
from tests.support.postgres import Database
from tests.support.service import (
    PATIENCE,
    Connection,
    Place,
    Rows,
    connect,
    pool_of,
    serving,
    with_arguments,
    workers_of,
)

Ways = dict[str, UUID]
"""Pushes that are due before what is claimed, by the way in which they came there."""


@asynccontextmanager
async def early_pushes(
    database: Database, rows: Rows, passes: Callable[[], Awaitable[None]]
) -> AsyncIterator[Ways]:
    """Puts them into the queue, where a claim that begins later does not see them.

    Args:
        passes: returns when what is due now is claimed, and looks begin later.
    """
    async with AsyncExitStack() as stack:
        snapshot, slow, locking, holding, dead = [
            await stack.enter_async_context(await connect(database.dsn)) for _ in range(5)
        ]
        await snapshot.execute("begin transaction isolation level repeatable read")
        await snapshot.execute("select from push_notifications limit 1")

        given_up = await rows.add(device_token="given up", title="t")
        await rows.query(
            "update push_notifications set status = 'dead', next_attempt_at = null where id = %(id)s",
            id=given_up,
        )
        scheduled = await _insert(holding, "locked", "now() + interval '0.2 s'")
        await locking.execute("begin")
        await locking.execute("select from push_notifications where id = %s for update", (scheduled,))
        await slow.execute("begin")
        inserted = await _insert(slow, "inserted", "now()")
        await holding.execute("begin")
        await holding.execute("select requeue_pushes(array[%s::uuid])", (given_up,))

        await rows.query(
            "select pg_sleep_until(next_attempt_at) from push_notifications where id = %(id)s", id=scheduled
        )
        await passes()
        rescued = await _rescued(database, dead)
        past = await _insert(rows.connection, "past", "now() - interval '1 h'")
        urgent = await _insert(rows.connection, "urgent", "now() - interval '1 h'", "high")
        await slow.execute("commit")
        await holding.execute("commit")
        await locking.execute("rollback")
        await passes()
        yield {
            "inserted by a transaction that was open for long": inserted,
            "requeued by a transaction that was open for long": given_up,
            "behind a locked row": scheduled,
            "scheduled for a time that has passed": past,
            "the same, urgent": urgent,
            "of a dead worker": rescued,
        }


async def _insert(conn: Connection, token: str, due: str, priority: str = "normal") -> UUID:
    cursor = await conn.execute(
        "insert into push_notifications (device_token, title, priority, next_attempt_at, created_at) "
        f"values (%s, 't', %s, {due}, now() - interval '1 h') returning id".encode(),
        (token, priority),
    )
    found = await cursor.fetchone()
    assert found is not None
    return cast(UUID, found["id"])


async def _rescued(database: Database, life: Connection) -> UUID:
    """A push whose worker has died, and that another has put back: it is due since it was inserted."""
    async with pool_of(database.dsn) as pool:
        peer, saver = [await workers.register(pool, "peer") for _ in range(2)]
        await life.execute("select pg_advisory_lock(%s, %s)", (LIVENESS_CLASS, peer))
        push_id = await _insert(life, "rescued", "now() + interval '1 h'")
        await life.execute(
            "update push_notifications set status = 'processing', claimed_by = %s, delivery_attempts = 1 where id = %s",
            (peer, push_id),
        )
        await life.execute("update push_listener.workers set guarded = true where id = %s", (peer,))
        await life.execute("select pg_advisory_unlock_all()")
        assert (await workers_of(Queue(pool, worker_id=saver, lease=60.0)).rescue({peer}))[:2] == ([peer], 1)
    return push_id


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("way_to_look", ["claims", "beside the claims", "never"])
async def test_what_is_due_before_all_that_is_claimed_is_found(
    place: Place, monkeypatch: pytest.MonkeyPatch, way_to_look: str
) -> None:
    """Most of it at once. What another worker has put back, only a look over the whole range finds."""
    rows = place.rows
    with_arguments(
        monkeypatch,
        Frontier,
        margin=0.0,
        at_most=3600.0 if way_to_look == "never" else 0.05,
        pause_after_question=1e9,
        expensive=-1.0 if way_to_look == "beside the claims" else 1e9,
    )
    settings = place.settings(sweep_interval=3600.0)

    async def run(self: PeerWatch) -> None:
        """Does nothing. The real one might rescue the push first, and then look at the whole range."""

    monkeypatch.setattr(PeerWatch, "run", run)
    async with serving(settings):

        async def passes() -> None:
            await rows.one_over(await rows.add(device_token="usual", title="t"))

        await passes()
        async with early_pushes(place.database, rows, passes) as early:
            rescued = early.pop("of a dead worker")
            await rows.over(*early.values())
            if way_to_look != "never":
                await rows.over(rescued)
            else:
                await passes()
                assert (await rows.get(rescued))["status"] == "pending"


@pytest.mark.asyncio(loop_scope="module")
async def test_triggers_that_are_disabled_cost_no_push(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then rows come to lie before what is claimed, and only a look over the whole range finds them."""
    rows = place.rows
    with_arguments(monkeypatch, Frontier, at_most=0.05, expensive=-1.0)
    await rows.may_be_early()
    async with serving(place.settings(sweep_interval=3600.0)):
        await rows.one_over(await rows.add(device_token="usual", title="t"))
        early = [
            await _insert(rows.connection, f"early {number}", f"now() - interval '{number} min'", priority)
            for number in range(1, 10)
            for priority in ("high", "normal")
        ]
        await rows.over(*early)


@pytest.mark.asyncio(loop_scope="module")
async def test_many_pushes_that_a_long_transaction_has_inserted_do_not_wait_for_a_look_each(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a broadcast does. If only looks brought them, forty every few seconds, the test would not wait for them."""
    rows, emulator = place.rows, place.emulator
    with_arguments(monkeypatch, Frontier, at_most=5.0, expensive=-1.0, most_behind=20)
    await rows.may_be_early()
    async with serving(place.settings(sweep_interval=3600.0)):
        await rows.one_over(await rows.add(device_token="usual", title="t"))
        await rows.query(
            "insert into push_notifications (device_token, title, priority, next_attempt_at, created_at) "
            "select 'early-' || n, 't', case when n % 2 = 0 then 'high' else 'normal' end, "
            "now() - interval '1 min' + n * interval '1 ms', now() - interval '1 h' from generate_series(1, 300) n"
        )
        await emulator.wait_received(301, timeout=PATIENCE)
