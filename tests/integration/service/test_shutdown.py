"""How the process ends: real signals to a real process, and what is then in the database."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from listener import worker
from listener.emulator import Emulator
from listener.postgres.queue import Queue
from listener.push import Push
from listener.sending import dispatcher
from tests.support.postgres import Database
from tests.support.service import (
    PATIENCE,
    Place,
    Program,
    Rows,
    environment,
    program,
    rows_of,
    serving,
    unanswered,
)

SOON = 20.0
"""Seconds in which a process ends. To wait for what must not be waited for would take a minute or more."""


@asynccontextmanager
async def listener(place: Place, **variables: str) -> AsyncIterator[Program]:
    env = environment(place.database.dsn, place.emulator, **variables)
    async with program("run", env=env, forked=True) as started:
        await started.said("ready")
        yield started


async def signed_off(rows: Rows) -> list[bool]:
    found = await rows.query("select stopped_at is not null as off from push_listener.workers order by id")
    return [row["off"] for row in found]


@pytest.mark.asyncio(loop_scope="module")
async def test_idle_it_ends_at_once(place: Place) -> None:
    async with listener(place, shutdown_grace="60") as running:
        running.signal(signal.SIGINT)
        assert await running.ended(SOON) == 0
        assert await signed_off(place.rows) == [True]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_in_flight_is_finished_and_written_down(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    emulator.latency = 3.0
    async with listener(place, shutdown_grace="60", max_in_flight="40") as running:
        await rows.add_many(400)
        await emulator.wait_received(35, timeout=PATIENCE)  # the other places are kept for high priority
        running.signal(signal.SIGTERM)
        assert await running.ended() == 0
        found = await rows.all()
        sent = {str(push_id) for push_id, row in found.items() if row["status"] == "sent"}
        assert sent == {record.push_id for record in emulator.accepted}
        # On a busy machine the first are answered, and more are claimed, before the signal comes.
        assert 35 <= len(sent) < 400
        assert sum(row["status"] == "pending" for row in found.values()) == 400 - len(sent)
        assert await signed_off(rows) == [True]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_takes_longer_than_the_grace_period_goes_back_for_the_next_process(place: Place) -> None:
    """Of the devices of a user only those are asked again from which there was no answer."""
    rows, emulator = place.rows, place.emulator
    user = uuid4()
    await rows.device("tablet", user)
    await rows.device("deaf-tablet", user)
    emulator.add_fault("slow,token_prefix=slow,latency_ms=60000")
    emulator.add_fault("unavailable,token=deaf-tablet,latency_ms=60000")
    # The rest of the grace, a fifth of it, is for writing results down.
    async with listener(place, shutdown_grace="3", max_in_flight="60", retry_min_delay="0.1") as running:
        to_user = await rows.add(user_id=user, title="t")
        await rows.add_many(40, "slow")
        await emulator.wait_received(42, timeout=PATIENCE)
        await rows.add_many(20, "quick")
        await emulator.wait_accepted(46, timeout=PATIENCE)
        running.signal(signal.SIGTERM)
        assert await running.ended(SOON) == 0
    found = await rows.all()
    assert {row["status"] for row in found.values()} == {"sent", "pending"}
    assert found[to_user]["status"] == "pending"
    for row in found.values():
        if (row["device_token"] or "").startswith("slow"):
            # FCM may have it: that is said, and costs no try.
            assert (row["status"], row["error_code"], row["retry_count"]) == ("pending", "ABANDONED", 0)
            assert [log["status"] for log in await rows.logs(row["id"])] == ["unknown"]
    emulator.clear_faults()
    async with listener(place):
        assert {row["status"] for row in (await rows.over()).values()} == {"sent"}
    assert await rows.query("select id from push_notifications where claimed_by is null") == []
    asked = [str(record.target) for record in emulator.received if record.push_id == str(to_user)]
    assert sorted(asked[:2]) == ["deaf-tablet", "tablet"]
    assert asked[2:] == ["deaf-tablet"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_second_signal_hurries(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    emulator.add_fault("slow,latency_ms=60000")
    async with listener(place, shutdown_grace="120", lease="200", fcm_request_timeout="70") as running:
        await rows.add_many(20)
        await emulator.wait_received(20, timeout=PATIENCE)
        running.signal(signal.SIGTERM)
        await running.said("stopping")
        running.signal(signal.SIGINT)
        assert await running.ended(SOON) == 0
        assert {row["status"] for row in (await rows.all()).values()} == {"pending"}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_row_of_which_nothing_was_sent_goes_back_as_it_was(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    user = uuid4()
    await rows.device("slow-1", user)
    await rows.device("slow-2", user)
    emulator.add_fault("unavailable,latency_ms=60000")
    async with listener(place, shutdown_grace="1", max_in_flight="2") as running:
        # One row is two requests, all that may be under way; the other row waits for its turn.
        await rows.add(user_id=user, title="t")
        await emulator.wait_received(2, timeout=PATIENCE)
        waits = await rows.add(device_token="waits", title="t")
        await rows.until(lambda found: found[waits]["status"] == "processing")
        running.signal(signal.SIGTERM)
        assert await running.ended(SOON) == 0
    assert {record.target for record in emulator.received} == {"slow-1", "slow-2"}
    waited = await rows.get(waits)
    assert (waited["status"], waited["error_code"], waited["delivery_attempts"]) == ("pending", None, 1)
    assert waited["next_in"] <= 0.0
    assert await rows.logs(waits) == []


async def test_while_the_database_is_away_it_keeps_to_the_grace_period_and_the_next_waits_for_it(
    database: Database, emulator: Emulator
) -> None:
    """The next one takes the rows over of which the first could not write what became of them."""
    async with rows_of(database.dsn) as rows:
        place = Place(database, rows, emulator)
        async with listener(place, shutdown_grace="2") as running:
            with unanswered(emulator):
                await rows.add_many(20)
                await emulator.wait_accepted(20, timeout=PATIENCE)
                await rows.survive_crash()
                await asyncio.to_thread(database.server.stop)
            running.signal(signal.SIGTERM)
            assert await running.ended(SOON) == 0
            said = await running.said(
                "could not settle everything; another worker takes the rows over, at the latest when their lease ends"
            )
            assert said["level"] == "error"
            assert "Traceback" not in running.output
    async with program("run", env=environment(database.dsn, emulator), forked=True) as following:
        await following.said("database cannot be reached")
        await asyncio.to_thread(database.server.start)
        await following.said("ready")
        async with rows_of(database.dsn) as rows:
            found = await rows.over()
    assert {(row["status"], row["retry_count"], row["lost_claims"]) for row in found.values()} == {
        ("sent", 0, 1)
    }


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("away", [False, True])
async def test_rows_of_a_last_claim_whose_answer_was_lost_do_not_wait_for_their_lease(
    place: Place, away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = place.rows
    monkeypatch.setattr(dispatcher, "_LAST_PATIENCE_S", PATIENCE)
    monkeypatch.setattr(worker, "_SIGN_OFF_PATIENCE_S", PATIENCE)
    claim = Queue.claim

    async def fail(*_: object) -> Any:
        raise psycopg.OperationalError("the connection is lost")

    async with serving(place.settings()) as service:

        async def claim_unheard(self: Queue, *arguments: Any) -> list[Push]:
            pushes = await claim(self, *arguments)
            if pushes:
                service.stop()
                await fail()
            return pushes

        monkeypatch.setattr(Queue, "claim", claim_unheard)
        if away:
            monkeypatch.setattr(Queue, "release", fail)
        push_id = await rows.add(device_token="t", title="t")
        await rows.until(lambda found: found[push_id]["delivery_attempts"] == 1)
    # Where it could not put it back, it does not look as if it had.
    assert await signed_off(rows) == [not away]
    assert (await rows.get(push_id))["status"] == ("processing" if away else "pending")
