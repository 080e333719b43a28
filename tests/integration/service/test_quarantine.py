"""A push that kills whoever sends it: it is found out, set apart, and what merely died with it is sent."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping

import psycopg
import pytest

from listener.emulator import Emulator
from listener.postgres import workers
from listener.postgres.locks import LIVENESS_CLASS
from tests.support.postgres import Database
from tests.support.service import (
    OVER,
    Place,
    Rows,
    connect,
    environment,
    pool_of,
    python,
    serving,
    settings_for,
    shown,
)

# push-listener, but for one thing: it does not outlive a message to "killer", which is never sent.
_MORTAL = """
import os, signal
from listener.cli.main import main
from listener.fcm.sender import Sender

send = Sender.send

async def send_or_die(self, outgoing):
    if b'"killer"' in outgoing.make_body():
        os.kill(os.getpid(), signal.SIGKILL)
    return await send(self, outgoing)

Sender.send = send_or_die
main()
"""


async def supervised(env: Mapping[str, str], deaths: list[int], start: float) -> None:
    """Starts the listener, and again whenever it has died, as init systems and platforms do.

    Args:
        env: its environment.
        deaths: gets its exit code each time.
        start: seconds that a start takes. A forked process takes none, but a real one imports all that there is.
    """
    while True:
        await asyncio.sleep(start)
        async with python("-c", _MORTAL, "run", env=env, forked=True) as running:
            code = await running.ended(100.0)
            assert code == -signal.SIGKILL, running.output[-2000:]
            deaths.append(code)


@pytest.mark.timeout(180)
async def test_a_push_that_kills_is_set_apart_and_all_others_are_sent(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    emulator.latency = 0.02
    await rows.query(
        "insert into push_notifications (device_token, title) "
        "select case n when 50 then 'killer' else 'phone-' || n end, 't' from generate_series(1, 101) n"
    )
    deaths: list[int] = []
    env = environment(database.dsn, emulator, log_level="error")
    began = time.monotonic()
    # Several that are back at once lose the same rows more often than real ones, which take a second to start.
    workers, start = 3, 1.0
    supervising = [asyncio.create_task(supervised(env, deaths, start)) for _ in range(workers)]
    waiting = asyncio.create_task(
        rows.until(lambda found: all(each["status"] in OVER for each in found.values()), patience=150)
    )
    try:
        await asyncio.wait({waiting, *supervising}, return_when=asyncio.FIRST_COMPLETED)
        for ended in (each for each in supervising if each.done()):
            ended.result()
        found = waiting.result()
    finally:
        for task in (waiting, *supervising):
            task.cancel()
        await asyncio.wait({waiting, *supervising})
    (killer,) = [row for row in found.values() if row["device_token"] == "killer"]
    others = [row for row in found.values() if row["device_token"] != "killer"]
    worst = max(row["lost_claims"] for row in others)
    print(
        f"{workers} workers: {len(deaths)} deaths, {time.monotonic() - began:.0f} s; of the others none was lost more "
        f"than {worst} times, {sum(row['lost_claims'] > 3 for row in others)} of {len(others)} more than three times"
    )
    assert (killer["status"], killer["error_code"], killer["lost_claims"]) == ("dead", "QUARANTINED", 10)
    assert "10 workers died" in killer["last_error"]
    assert len(deaths) == 10
    assert {(row["status"], row["retry_count"]) for row in others} == {("sent", 0)}
    assert len(others) == 100
    assert worst <= 8  # at ten they would be taken for killers, too

    # Once it is known what it was, it is put back like any other.
    async with serving(settings_for(database.dsn, emulator)):
        await rows.query("select requeue_pushes(p_error_code => 'QUARANTINED')")
        row = await rows.one_over(killer["id"])
    assert (row["status"], row["lost_claims"]) == ("sent", 0)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_push_that_is_set_apart_is_counted_among_the_dead(place: Place) -> None:
    """The alert FaultBurn divides the one counter by the other."""
    rows = place.rows
    async with serving(place.settings()) as service:
        await rows.query(
            "insert into push_notifications (device_token, title, lost_claims) values ('phone-1', 't', 10)"
        )
        (row,) = (await rows.over()).values()
        assert (row["status"], row["error_code"]) == ("dead", "QUARANTINED")
        await shown(service.metrics, "push_dead_total", 1, {"code": "QUARANTINED"})
        await shown(service.metrics, "push_settled_total", 1, {"status": "dead"})


@pytest.mark.asyncio(loop_scope="module")
async def test_those_who_live_become_gentle_too_before_they_take_over_what_others_died_of(
    place: Place,
) -> None:
    """Otherwise one after the other would die with a thousand pushes in flight, and all of them be taken for it."""
    database, rows = place.database, place.rows
    async with (
        pool_of(database.dsn) as pool,
        await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as life,
        serving(place.settings()) as service,
    ):
        health = service._health
        assert health is not None
        assert health.limit(time.monotonic(), 0, 1000) == 1000
        dead = [await workers.register(pool, "dead") for _ in range(3)]
        await life.execute(
            "update push_listener.workers set guarded = true, lost = id <> %(last)s, "
            "stopped_at = case when id <> %(last)s then now() end where id = any(%(dead)s)",
            {"dead": dead, "last": dead[-1]},
        )
        await life.execute("select pg_advisory_lock(%s, %s)", (LIVENESS_CLASS, dead[-1]))
        async with await connect(database.dsn) as conn:
            await conn.execute(
                "insert into push_notifications "
                "  (device_token, title, status, claimed_by, delivery_attempts, next_attempt_at) "
                "values ('t', 't', 'processing', %s, 1, now() + interval '60 s')",
                (dead[-1],),
            )
        await life.execute("select pg_advisory_unlock_all()")
        (row,) = (await rows.over()).values()
        assert (row["status"], row["lost_claims"]) == ("sent", 1)
        # Three have died: 15 at first, twice as many after five seconds.
        assert health.limit(time.monotonic(), 0, 1000) <= 60
