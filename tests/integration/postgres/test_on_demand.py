"""The connection that is there only while somebody needs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from listener.postgres.connect import Address
from listener.postgres.on_demand import OnDemand
from tests.support.postgres import Database
from tests.support.service import Rows, until, until_found, until_gone

BACKEND = "select pg_backend_pid()"


@pytest.fixture
async def on_demand(database: Database) -> AsyncIterator[OnDemand]:
    made = OnDemand(Address(database.dsn), "on-demand")
    yield made
    await made.close()


async def backend(on_demand: OnDemand) -> int:
    async with on_demand.connection() as connection:
        row = await (await connection.execute(BACKEND)).fetchone()
        assert row is not None
        return int(row[0])


async def is_there(rows: Rows) -> bool:
    return bool(await rows.query("select pid from pg_stat_activity where application_name = 'on-demand'"))


async def test_it_is_opened_when_needed_and_kept_for_the_next(on_demand: OnDemand, rows: Rows) -> None:
    assert not await is_there(rows)
    assert await backend(on_demand) == await backend(on_demand)
    assert await is_there(rows)


async def test_it_is_closed_when_nobody_needs_it(database: Database, rows: Rows) -> None:
    on_demand = OnDemand(Address(database.dsn), "on-demand", idle=0.01)
    first = await backend(on_demand)
    await until_gone(is_there, rows)
    assert await backend(on_demand) != first
    await on_demand.close()


async def test_one_caller_at_a_time(on_demand: OnDemand) -> None:
    async with on_demand.connection():
        waiting = asyncio.create_task(backend(on_demand))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting


async def test_a_connection_that_is_lost_is_replaced(on_demand: OnDemand, rows: Rows) -> None:
    first = await backend(on_demand)
    await rows.query("select pg_terminate_backend(%(pid)s)", pid=first)
    with pytest.raises(psycopg.OperationalError):
        await backend(on_demand)
    assert await backend(on_demand) != first


async def test_a_statement_that_fails_costs_no_connection(on_demand: OnDemand) -> None:
    first = await backend(on_demand)
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with on_demand.connection() as connection:
            await connection.execute("select 1 / 0")
    assert await backend(on_demand) == first


async def test_a_caller_that_is_cancelled_leaves_nothing_behind(on_demand: OnDemand, rows: Rows) -> None:
    async def work() -> None:
        async with on_demand.connection() as connection:
            await connection.execute("begin")
            await connection.execute("select pg_sleep(3600)")

    working = asyncio.create_task(work())
    sleeping = (
        "select pid from pg_stat_activity where application_name = 'on-demand' and query like '%pg_sleep%'"
    )
    await until_found(rows.query, sleeping)
    working.cancel()
    await asyncio.wait({working})
    async with on_demand.connection() as connection:
        assert connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE


async def test_the_patience_covers_the_wait_for_others(database: Database) -> None:
    on_demand = OnDemand(Address(database.dsn), "on-demand", patience=0.05)
    with pytest.raises(psycopg.OperationalError, match="timeout"):
        async with on_demand.connection() as connection:
            await connection.execute("select pg_sleep(3600)")
    assert await backend_with(OnDemand(Address(database.dsn), "on-demand"))
    await until(lambda: not on_demand._turn.locked())
    await on_demand.close()


async def backend_with(on_demand: OnDemand) -> int:
    try:
        return await backend(on_demand)
    finally:
        await on_demand.close()
