"""What is particular to a connection: the caller's transaction, pools, and a server that goes away."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
import traceback
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest
from psycopg import AsyncRawCursor, RawCursor
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from listener import client
from listener.client import (
    ClientError,
    Direct,
    InvalidArgument,
    NotAllowed,
    Notification,
    Push,
    PushClient,
    TelemetryService,
    Unavailable,
)
from tests.support.client import way
from tests.support.postgres import Database, Server
from tests.support.service import PATIENCE, Rows

PUSH = Push(token="phone", notification=Notification("t"))


@pytest.fixture
async def pushes(database: Database) -> AsyncIterator[PushClient]:
    async with PushClient(Direct(database.dsn)) as opened:
        yield opened


async def test_a_push_belongs_to_the_callers_transaction(
    database: Database, pushes: PushClient, rows: Rows
) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn, row_factory=dict_row) as conn:
        await pushes.enqueue(PUSH, conn=conn)
        await conn.rollback()
        assert await rows.all() == {}
        push_id = await pushes.enqueue(PUSH, conn=conn)
        assert await rows.all() == {}
        await conn.commit()
    assert set(await rows.all()) == {push_id}


async def test_a_connection_of_a_framework_that_reads_values_as_text(
    database: Database, pushes: PushClient, rows: Rows
) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        for name in ("jsonb", "timestamptz", "uuid"):
            conn.adapters.register_loader(name, TextLoader)
        push_id = await pushes.enqueue(PUSH, conn=conn)
        cursor = await conn.execute("select now(), '1'::jsonb")
        assert all(isinstance(value, str) for value in await cursor.fetchone() or [None])
    assert set(await rows.all()) == {push_id}


async def test_a_refusal_leaves_the_transaction_to_its_owner(
    database: Database, pushes: PushClient, rows: Rows
) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        push_id = await pushes.enqueue(PUSH, conn=conn)
        with pytest.raises(InvalidArgument, match="nothing to send"):
            async with conn.transaction():
                await pushes.enqueue(Push(token="phone"), conn=conn)
    assert set(await rows.all()) == {push_id}


async def test_a_synchronous_connection(database: Database, rows: Rows) -> None:
    def work() -> None:
        with psycopg.connect(database.dsn, row_factory=dict_row) as conn:
            first = client.enqueue(
                conn, Push(token="phone", notification=Notification("t"), idempotency_key="k")
            )
            assert client.enqueue(conn, device_token="phone", title="t", idempotency_key="k") == first
            assert client.progress(conn, first).status == "pending"
            with pytest.raises(InvalidArgument, match="nothing to send"), conn.transaction():
                client.enqueue(conn, Push(token="phone"))
            with pytest.raises(TypeError, match="a Push, or columns"):
                client.enqueue(conn, PUSH, title="t")
            conn.rollback()
        with psycopg.connect(database.dsn) as conn:
            client.enqueue(conn, PUSH)

    await asyncio.to_thread(work)
    assert len(await rows.all()) == 1


async def test_the_wrong_kind_of_connection_is_told_which_call_is_right(
    database: Database, pushes: PushClient
) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        with pytest.raises(TypeError, match=r"use PushClient.enqueue\(push, conn=conn\)"):
            client.enqueue(conn, PUSH)  # type: ignore[arg-type]
        with pytest.raises(
            TypeError, match="conn= needs a PushClient over Direct: Rest cannot join a transaction"
        ):
            await PushClient(client.Rest("https://x.supabase.co", "k")).enqueue(PUSH, conn=conn)
    with (
        psycopg.connect(database.dsn) as sync,
        pytest.raises(TypeError, match=r"listener.client.enqueue\(conn, push\)"),
    ):
        await pushes.enqueue(PUSH, conn=sync)  # type: ignore[arg-type]


async def test_an_array_of_json_arrives_as_it_is(database: Database) -> None:
    odd = {'a"b\\c{},': ["\\", '"', "NULL", "\n\t", "ü🚀", {"x": None}], "": "", "n": 1.5}
    with psycopg.connect(database.dsn) as conn:
        conn.execute(
            "create function public.echo(p_a jsonb[]) returns jsonb language sql as 'select to_jsonb(p_a)'"
        )
    transport = Direct(database.dsn)
    assert await transport.call("echo", {"p_a": [odd, {}, odd]}) == [odd, {}, odd]
    assert await transport.call("echo", {"p_a": []}) == []
    await transport.close()


@pytest.mark.parametrize("autocommit", [False, True])
async def test_a_pool_of_the_application(database: Database, rows: Rows, autocommit: bool) -> None:
    settings = {"autocommit": autocommit, "row_factory": dict_row}
    async with AsyncConnectionPool(database.dsn, min_size=1, max_size=2, open=False, kwargs=settings) as pool:
        transport = Direct(pool)
        async with PushClient(transport) as pushes:
            push_id = await pushes.enqueue(PUSH)
            with pytest.raises(InvalidArgument):
                await pushes.enqueue(Push(token="phone"))
            await pushes.cancel(push_id)
        assert pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"]
        with pytest.raises(ValueError, match="AsyncTelemetryService"):
            TelemetryService(transport)
    assert (await rows.get(push_id))["status"] == "cancelled"


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(TypeError, match="not ConnectionPool"):
        Direct(ConnectionPool("", open=False))  # type: ignore[arg-type]


async def test_a_role_that_may_not(database: Database) -> None:
    dsn = make_conninfo(database.dsn_as("authenticator"), options="-c role=anon")
    async with PushClient(Direct(dsn)) as pushes:
        with pytest.raises(NotAllowed):
            await pushes.enqueue(PUSH)


async def test_why_there_is_no_connection_is_told(database: Database) -> None:
    dsn = make_conninfo(database.dsn, dbname="no_such_database")
    said = ""
    async with PushClient(Direct(dsn, connect_timeout=0.5)) as pushes, asyncio.timeout(PATIENCE):
        # A busy server does not say it within half a second.
        while 'database "no_such_database" does not exist' not in said:
            with pytest.raises(Unavailable) as failed:
                await pushes.enqueue(PUSH)
            assert not failed.value.may_have_happened
            said = str(failed.value)


async def test_after_a_restart_of_the_server_calls_succeed(
    postgres: Server, database: Database, pushes: PushClient
) -> None:
    await pushes.enqueue(PUSH)
    await asyncio.to_thread(postgres.stop)
    await asyncio.to_thread(postgres.start)
    async with asyncio.timeout(PATIENCE):
        while True:  # a connection that was used a moment ago is not looked at before the call
            try:
                await pushes.enqueue(PUSH)
                break
            except Unavailable:
                continue


async def test_a_statement_that_takes_too_long_is_cancelled(database: Database, rows: Rows) -> None:
    push_id = await rows.add(device_token="phone", title="t")
    async with await psycopg.AsyncConnection.connect(database.dsn) as blocker:
        await blocker.execute("select from push_notifications for update")
        transport = Direct(database.dsn, timeout=0.2)
        async with PushClient(transport) as pushes:
            with pytest.raises(Unavailable, match=r"not answered within 0.2 s") as late:
                await pushes.cancel(push_id)
            assert late.value.may_have_happened
            await blocker.rollback()
            transport._timeout = PATIENCE
            assert await pushes.cancel(push_id) is True


async def test_a_server_that_says_nothing_is_cut_off(
    database: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not even react to a request to cancel."""
    monkeypatch.setattr("listener.client.direct._CUT_AFTER", 0.1)
    transport = Direct(database.dsn)
    async with PushClient(transport) as pushes:
        push_id = await pushes.enqueue(PUSH)
        transport._timeout = 0.2
        (backend,) = await rows.query(
            "select pid from pg_stat_activity where query like '%%enqueue_push%%' and pid <> pg_backend_pid() "
            "and datname = current_database()"
        )
        os.kill(backend["pid"], signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable) as cut:
                await pushes.cancel(push_id)
            assert cut.value.may_have_happened
        finally:
            os.kill(backend["pid"], signal.SIGCONT)


async def test_an_answer_that_is_lost_may_have_happened(database: Database) -> None:
    with way("direct", database) as entry:
        transport = entry.service()
        entry.faults.lose_answers(1)
        batch = {
            "p_payloads": [{"type": "t", "message": "m"}],
            "p_batch_id": "0f8fad5b-d9cb-469f-a165-70867728950e",
        }
        with pytest.raises(Unavailable, match="connection to Postgres has ended") as lost:
            await transport.call("flush_telemetry", batch)
        assert lost.value.may_have_happened
        again = await transport.call("flush_telemetry", batch)
        await transport.close()
    assert again["accepted"] == 1
    with psycopg.connect(database.dsn) as conn:
        assert conn.execute("select count(*) from telemetry_logs").fetchone() == (1,)


async def test_a_traceback_of_the_synchronous_call_shows_no_token(database: Database, rows: Rows) -> None:
    """Of a push, and of columns, for which the error is psycopg's."""
    token = "a-token-that-nobody-may-read"
    await rows.query("alter table push_notifications add constraint polite check (title <> 'forbidden')")

    def work() -> list[str]:
        texts = []
        with psycopg.connect(database.dsn) as conn:
            calls: list[Callable[[], object]] = [
                lambda: client.enqueue(conn, Push(token=token, notification=Notification("forbidden"))),
                lambda: client.enqueue(conn, device_token=token, title="forbidden"),
            ]
            for call in calls:
                with (
                    pytest.raises((ClientError, psycopg.errors.CheckViolation)) as caught,
                    conn.transaction(),
                ):
                    call()
                texts.append("".join(traceback.format_exception(caught.value)))
        return texts

    for text in await asyncio.to_thread(work):
        assert "polite" in text
        assert token not in text


def test_an_event_loop_that_has_ended_leaves_no_connection(database: Database) -> None:
    """Django's ``async_to_sync`` and Celery tasks make a loop for each call; the client lives as long as they do."""

    def connections() -> int:
        row = watcher.execute(
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            " and backend_type = 'client backend'"
        ).fetchone()
        assert row is not None
        return int(row[0])

    def await_connections(most: int) -> None:
        until = time.monotonic() + PATIENCE  # the server notices the end of a connection a little later
        while connections() > most:
            assert time.monotonic() < until
            time.sleep(0.01)

    with psycopg.connect(database.dsn, autocommit=True) as watcher:
        pushes = PushClient(Direct(database.dsn))
        for _ in range(6):
            asyncio.run(pushes.enqueue(PUSH))
        await_connections(1)
        del pushes
        gc.collect()
        await_connections(0)


async def test_connections_with_raw_cursors(database: Database) -> None:
    async with (
        await psycopg.AsyncConnection.connect(database.dsn, cursor_factory=AsyncRawCursor) as conn,
        PushClient(Direct(database.dsn)) as pushes,
    ):
        await pushes.enqueue(PUSH, conn=conn)

    def work() -> None:
        with psycopg.connect(database.dsn, cursor_factory=RawCursor) as conn:
            push_id = client.enqueue(conn, PUSH)
            client.enqueue(conn, device_token="phone", title="t")
            assert client.progress(conn, push_id).status == "pending"
            client.database_time(conn)

    await asyncio.to_thread(work)


async def test_columns_may_name_an_installation_id(database: Database, rows: Rows) -> None:
    def work() -> None:
        with psycopg.connect(database.dsn) as conn:
            client.enqueue(conn, fid="dTnB3Zx8QhGkPq1WvYcR0s", title="t")

    await asyncio.to_thread(work)
    (row,) = (await rows.all()).values()
    assert row["fid"] == "dTnB3Zx8QhGkPq1WvYcR0s"


async def test_wait_keeps_its_time_though_the_server_says_nothing(database: Database, rows: Rows) -> None:
    async with PushClient(Direct(database.dsn)) as pushes:
        push_id = await pushes.enqueue(PUSH)
        (backend,) = await rows.query(
            "select pid from pg_stat_activity where query like '%%enqueue_push%%' and pid <> pg_backend_pid() "
            "and datname = current_database()"
        )
        os.kill(backend["pid"], signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable, match="no answer within"):
                await pushes.wait(push_id, timeout=0.1)
        finally:
            os.kill(backend["pid"], signal.SIGCONT)
