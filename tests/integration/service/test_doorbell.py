"""Wake-ups, and what happens when the connections to Postgres break."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from listener.demo.embedded import StopMode
from listener.emulator import Emulator
from listener.metrics.own import Metrics
from listener.postgres.connect import Address
from listener.postgres.locks import CHANNEL
from listener.push import Settlement
from listener.sending.settler import Settler
from listener.wakeup.doorbell import Doorbell, Topic
from tests.support.doorbell import Rings, cut
from tests.support.postgres import Database
from tests.support.service import (
    PATIENCE,
    Place,
    connect,
    get,
    naming,
    rows_of,
    serving,
    settings_for,
    unanswered,
)


@asynccontextmanager
async def listening(dsn: str) -> AsyncIterator[tuple[Doorbell, Rings]]:
    rings = Rings()
    doorbell = Doorbell(Address(dsn), 1, Metrics(), heartbeat=60.0)
    doorbell.subscribe(Topic.NOTIFIED, rings)
    running = asyncio.create_task(doorbell.run())
    try:
        async with asyncio.timeout(PATIENCE):
            await doorbell.wait_connected()
        yield doorbell, rings
    finally:
        running.cancel()
        await asyncio.wait({running})


# --- the bell --------------------------------------------------------------------------------------------


RINGS = [
    # (was: status and seconds until it is due, becomes, rings for it)
    (("pending", "0"), ("processing", "60"), False),  # a claim
    (("processing", "-60"), ("processing", "60"), False),
    (("processing", "60"), ("sent", None), False),  # settled
    (("processing", "60"), ("failed", "0"), False),
    (("processing", "60"), ("pending", "10"), False),  # its platform is paused
    (("processing", "60"), ("pending", "0"), True),  # given back
    (("dead", None), ("pending", "0"), True),  # put back by hand
    (("failed", "60"), ("pending", "0"), True),
    (("pending", "60"), ("pending", "0"), True),
    (("failed", "60"), ("failed", "0"), True),  # wanted sooner
    (("failed", "60"), ("failed", "90"), False),
    (("dead", None), ("pending", None), True),  # by who knows nothing of next_attempt_at
]


@pytest.mark.asyncio(loop_scope="module")
async def test_it_rings_for_what_is_to_be_looked_at_now(place: Place) -> None:
    rows = place.rows
    update = (
        "update push_notifications set status = %(status)s, "
        "next_attempt_at = now() + make_interval(secs => %(due)s)"
    )
    async with listening(place.database.dsn) as (doorbell, rings):
        assert doorbell.connected
        await rings.more_than(0)
        await rows.add(device_token="t", title="t")
        await rings.more_than(1)
        for was, becomes, rings_for_it in RINGS:
            with naming(f"{was} -> {becomes}"):
                await rows.query("alter table push_notifications disable trigger user")
                await rows.query(update, status=was[0], due=was[1])
                await rows.query("alter table push_notifications enable trigger user")
                before = rings.count
                await rows.query(update, status=becomes[0], due=becomes[1])
                # Notifications come in the order of commits: one for the update would come before this.
                await rows.query("select pg_notify(%(channel)s, '')", channel=CHANNEL)
                await rings.more_than(before)
                if rings_for_it:
                    await rings.more_than(before + 1)
                assert rings.count == before + 1 + rings_for_it


@pytest.mark.asyncio(loop_scope="module")
async def test_it_comes_back_and_rings_after_its_backend_was_terminated(place: Place) -> None:
    database = place.database
    async with listening(database.dsn) as (doorbell, rings):
        for _ in range(3):
            before = rings.count
            assert await cut(database, "push-listener doorbell") == 1
            await rings.more_than(before)
            assert doorbell.connected


# --- the service without its connections --------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_connections_that_were_cut_are_replaced(place: Place) -> None:
    """The sweep, which would find rows as well, comes in an hour."""
    rows = place.rows
    async with serving(place.settings()):
        for n in range(3):
            assert (await rows.one_over(await rows.add(device_token=f"t{n}", title="t")))["status"] == "sent"
            assert await cut(place.database, "push-listener") >= 1
        await rows.one_over(await rows.add(device_token="t", title="t"))
        # Nobody can connect: there is certainly nobody to hear the insert.
        async with kept_out(place.database):
            push_id = await rows.add(device_token="unheard", title="t")
            assert (await rows.get(push_id))["status"] == "pending"
        assert (await rows.one_over(push_id))["status"] == "sent"


@asynccontextmanager
async def kept_out(database: Database) -> AsyncIterator[None]:
    """The doorbell's connection is cut, and cannot be made anew while the block lasts."""
    async with await connect(database.superuser_dsn) as conn:
        limit = sql.SQL("alter database {} connection limit {}")
        await conn.execute(limit.format(sql.Identifier(database.name), sql.Literal(0)))
        try:
            assert await cut(database, "push-listener doorbell") == 1
            yield
        finally:
            await conn.execute(limit.format(sql.Identifier(database.name), sql.Literal(-1)))


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_of_postgres_loses_nothing(
    database: Database, mode: StopMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of before, during and after it are sent; what was under way is written down, not sent again."""
    answered = after_results(50, monkeypatch)
    async with (
        Emulator() as emulator,
        serving(settings_for(database.dsn, emulator)) as service,
    ):
        with unanswered(emulator):
            async with rows_of(database.dsn) as rows:
                await rows.query(
                    "insert into push_notifications (device_token, title) "
                    "select 'before-' || n, 't' from generate_series(1, 50) n"
                )
                await emulator.wait_accepted(50, timeout=PATIENCE)
                await rows.survive_crash()
            # All 50 are on their way: FCM answers while there is no database to write it to.
            await asyncio.to_thread(database.server.stop, mode)
        assert service.port is not None
        during = asyncio.create_task(insert_when_possible(database.dsn))
        async with asyncio.timeout(PATIENCE):
            await answered.wait()
        await asyncio.to_thread(database.server.start)
        push_id = await during
        async with rows_of(database.dsn) as rows:
            after = await rows.add(device_token="after", title="t")
            found = await rows.over()
            assert len(found) == 52
            assert {row["status"] for row in found.values()} == {"sent"}
            assert found[push_id]["device_token"] == "during"
            assert found[after]["device_token"] == "after"
            assert await get(service.port, "/readyz") == (200, "ok\n")
        assert emulator.stats()["duplicates"] == 0


def after_results(count: int, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when so many results have been handed over to be written."""
    reached, put, seen = asyncio.Event(), Settler.put, itertools.count(1)

    def counted(settler: Settler, settlement: Settlement) -> None:
        put(settler, settlement)
        if next(seen) == count:
            reached.set()

    monkeypatch.setattr(Settler, "put", counted)
    return reached


async def insert_when_possible(dsn: str) -> UUID:
    while True:
        try:
            async with rows_of(dsn) as rows:
                return await rows.add(device_token="during", title="t")
        except psycopg.OperationalError:
            await asyncio.sleep(0.05)
