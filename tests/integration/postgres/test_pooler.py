"""Behind PgBouncer: what works in which mode, and what is said where it cannot."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from listener.emulator import Emulator
from listener.postgres.connect import (
    Address,
    ServicePool,
    fetch_value,
    is_transaction_pooler,
    is_transaction_pooler_blocking,
)
from listener.schema import migrate
from tests.support.cli import invoke
from tests.support.pgbouncer import pooler
from tests.support.postgres import Database, Server
from tests.support.service import PATIENCE, Rows, environment, get, program, run


@pytest.fixture
async def transaction(database: Database) -> AsyncIterator[str]:
    async with pooler(database, "transaction") as dsn:
        yield dsn


@pytest.fixture
async def session(database: Database) -> AsyncIterator[str]:
    async with pooler(database, "session") as dsn:
        yield dsn


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
@pytest.mark.usefixtures("blank_database")  # which brings the role that owns a database
async def test_the_encoding_is_kept_in_transaction_mode(postgres: Server, encoding: str) -> None:
    """Whatever another client of the same backend has chosen."""
    with postgres.encoded(encoding) as database:
        async with (
            pooler(database, "transaction", size=1, user=postgres.superuser) as dsn,
            ServicePool(Address(dsn), prepares=False) as pool,
        ):
            for foreign in ("latin1", encoding):
                async with await psycopg.AsyncConnection.connect(
                    dsn, autocommit=True, client_encoding=foreign, prepare_threshold=None
                ) as other:
                    await other.execute("select 1")
                    async with pool.connection() as ours:
                        cursor = await ours.execute(
                            "select current_setting('client_encoding'), 'normal'::text"
                        )
                        assert await cursor.fetchone() == ("UTF8", "normal")


async def work_through(env: dict[str, str], rows: Rows, emulator: Emulator) -> str:
    """Sends rows, by far more statements than it takes to prepare them; returns the metrics."""
    async with program("run", env=env, forked=True) as running:
        await running.said("ready")
        for wave in range(12):
            await rows.query(
                "insert into push_notifications (device_token, title) "
                "select 'phone-' || %(wave)s || '-' || n, 't' from generate_series(1, 5) n",
                wave=str(wave),
            )
            if "WAKEUP" not in env:
                await rows.over()
        found = await rows.over()
        _, metrics = await get(await running.port(), "/metrics")
        running.terminate()
        assert await running.ended() == 0
        assert "Traceback" not in running.output
        assert not [record for record in running.records if record["level"] in ("warning", "error")]
    assert {(row["status"], row["delivery_attempts"]) for row in found.values()} == {("sent", 1)}
    assert (emulator.stats()["accepted"], emulator.stats()["duplicates"]) == (60, 0)
    assert re.findall(r"push_database_errors_total\{.*\} (?!0\.0$).*", metrics, re.MULTILINE) == []
    return metrics


# --- transaction mode ----------------------------------------------------------------------------------------


async def test_alone_it_is_refused_with_a_word_on_what_to_do_and_as_the_address_to_listen_at(
    database: Database, transaction: str, emulator: Emulator
) -> None:
    code, _, said = await run("run", env=environment(transaction, emulator), forked=True)
    assert code == 2
    assert "it is a pooler in transaction mode (on Supabase: port 6543)" in said
    assert "Set LISTEN_DATABASE_URL" in said
    assert "WAKEUP=sweep" in said
    assert "Traceback" not in said
    env = environment(database.dsn, emulator, listen_database_url=transaction)
    code, _, said = await run("run", env=env, forked=True)
    assert (code, "LISTEN cannot work through this address" in said) == (2, True)


async def test_with_a_direct_address_to_listen_at_everything_works(
    database: Database, transaction: str, rows: Rows, emulator: Emulator
) -> None:
    env = environment(transaction, emulator, listen_database_url=database.dsn, sweep_interval="3600")
    await work_through(env, rows, emulator)


async def test_with_sweeps_it_works_without_any_other_address(
    transaction: str, rows: Rows, emulator: Emulator
) -> None:
    env = environment(transaction, emulator, wakeup="sweep", sweep_interval="1")
    await work_through(env, rows, emulator)


async def test_migrations_are_refused_with_a_word_on_what_to_do(blank_database: Database) -> None:
    async with pooler(blank_database, "transaction") as dsn:
        for arguments in (["migrate"], ["migrate", "--status"], ["migrate", "--down", "0"]):
            refused = await invoke(dsn, *arguments)
            assert (refused.exit_code, "a pooler in transaction mode" in refused.stderr) == (2, True), (
                arguments
            )
            assert "LISTEN_DATABASE_URL" in refused.stderr
            assert "Traceback" not in refused.stderr
        done = await invoke(dsn, "migrate", LISTEN_DATABASE_URL=blank_database.dsn)
        assert (done.exit_code, "migrations applied" in done.stdout) == (0, True)


# --- session mode --------------------------------------------------------------------------------------------


async def test_in_session_mode_everything_works(session: str, rows: Rows, emulator: Emulator) -> None:
    await work_through(environment(session, emulator, sweep_interval="3600"), rows, emulator)


@pytest.mark.parametrize("size", [2, 3])
async def test_with_few_connections_behind_it_the_doorbell_has_one(
    database: Database, rows: Rows, emulator: Emulator, size: int
) -> None:
    """It refuses no client for which it has none, but lets it wait."""
    async with (
        pooler(database, "session", size) as dsn,
        program("run", env=environment(dsn, emulator), forked=True) as running,
    ):
        await running.said("ready")
        for wave in range(2):
            await rows.add_many(100, f"phone-{wave}")
            await rows.over()
        running.terminate()
        assert await running.ended() == 0


async def test_in_session_mode_migrations_work(blank_database: Database) -> None:
    async with pooler(blank_database, "session") as dsn:
        assert await asyncio.to_thread(migrate.apply, dsn)


async def test_a_worker_behind_it_that_is_killed_is_missed_at_once(
    database: Database, session: str, rows: Rows, emulator: Emulator
) -> None:
    """The pooler lets go of the lock when its client is gone."""
    hang = emulator.add_fault("timeout")
    async with program("run", env=environment(session, emulator), forked=True) as victim:
        await victim.said("ready")
        push_id = await rows.add(device_token="t", title="t")
        await emulator.wait_received(1)
        async with program("run", env=environment(session, emulator), forked=True) as heir:
            await heir.said("ready")
            emulator.remove_fault(hang)
            await victim.close()
            row = await rows.one_over(push_id)
    assert (row["status"], row["retry_count"], row["lost_claims"]) == ("sent", 0, 1)


# --- telling them apart ----------------------------------------------------------------------------------------


@asynccontextmanager
async def busy(dsn: str, clients: int = 8) -> AsyncIterator[None]:
    """Others, who take and give back what the pooler has without end."""

    async def work() -> None:
        async with await psycopg.AsyncConnection.connect(
            dsn, autocommit=True, prepare_threshold=None
        ) as conn:
            while True:
                await conn.execute("select pg_sleep(0.001)")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work()) for _ in range(clients)]
        await asyncio.sleep(0.2)
        yield
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize("size", [2, 20])
async def test_transaction_mode_is_found_out_however_busy_it_is(database: Database, size: int) -> None:
    async with pooler(database, "transaction", size) as dsn:
        assert await is_transaction_pooler(Address(dsn))
        async with busy(dsn):
            for _ in range(3):
                assert await is_transaction_pooler(Address(dsn))
                assert await asyncio.to_thread(is_transaction_pooler_blocking, dsn)


async def test_neither_a_direct_connection_nor_session_mode_is_taken_for_it(
    database: Database, session: str
) -> None:
    for dsn in (database.dsn, session):
        async with busy(dsn, clients=4):
            for _ in range(2):
                assert not await is_transaction_pooler(Address(dsn))
                assert not is_transaction_pooler_blocking(dsn)  # in a thread with a running event loop


async def test_a_pooler_without_a_second_connection_is_not_waited_for_without_end(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.postgres.connect._PROBE_PATIENCE_S", 0.5)
    async with pooler(database, "session", 1) as dsn:
        with pytest.raises(psycopg.OperationalError):
            await is_transaction_pooler(Address(dsn))


# --- what it says of its server ------------------------------------------------------------------------------------


async def test_what_it_says_of_its_server_is_from_long_ago(database: Database) -> None:
    """Therefore an address with one host does not ask for a server that can be written to."""

    async def set_read_only(value: str) -> None:
        async with await psycopg.AsyncConnection.connect(
            database.superuser_dsn, autocommit=True, options="-c default_transaction_read_only=off"
        ) as conn:
            await conn.execute(f"alter system set default_transaction_read_only = {value}".encode())
            await conn.execute("select pg_reload_conf()")

    await set_read_only("on")
    try:
        async with pooler(database, "transaction") as dsn:
            await set_read_only("off")
            with pytest.raises(psycopg.OperationalError, match="session is read-only"):
                await psycopg.AsyncConnection.connect(dsn, target_session_attrs="read-write")
            async with ServicePool(Address(dsn), prepares=False) as pool, pool.connection() as conn:
                # The server's process reads its configuration again soon, and tells nobody.
                async with asyncio.timeout(PATIENCE):
                    while await fetch_value(conn, "show transaction_read_only") != "off":  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
    finally:
        await set_read_only("off")


# --- one that resets nothing ----------------------------------------------------------------------------------------


async def test_doctor_tells_of_a_pooler_that_keeps_the_locks_of_the_dead(
    database: Database, emulator: Emulator
) -> None:
    async with pooler(database, "session", reset="") as dsn:
        code, said, _ = await run("doctor", env=environment(dsn, emulator), forked=True)
    assert (code, "keeps the locks of clients that have gone" in said) == (1, True)
    async with pooler(database, "session") as dsn:
        _, said, _ = await run("doctor", env=environment(dsn, emulator), forked=True)
    assert "keeps the locks" not in said


async def test_behind_a_pooler_that_resets_nothing_everything_works(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    """A session comes with the prepared statements and the settings of its former client."""
    async with pooler(database, "session", 3, reset="") as dsn:
        for wave in range(2):
            async with program("run", env=environment(dsn, emulator), forked=True) as running:
                await running.said("ready")
                for number in range(10):
                    await rows.add_many(2, f"phone-{wave}-{number}")
                    await rows.over()
                await running.close()  # killed
    found = await rows.all()
    assert {(row["status"], row["delivery_attempts"]) for row in found.values()} == {("sent", 1)}
