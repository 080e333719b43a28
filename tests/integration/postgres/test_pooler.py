"""Behind PgBouncer: what works in which mode, and what is said where it cannot."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from listener.demo.embedded import _unprivileged
from listener.emulator import Emulator
from listener.postgres.connect import is_transaction_pooler, is_transaction_pooler_blocking, make_pool
from listener.schema import migrate
from tests.support.postgres import SUPERUSER, Database, Server
from tests.support.servers import closed_port
from tests.support.service import PATIENCE, Rows, environment, get, program, run
from tests.support.tools import tool

pytestmark = pytest.mark.newest_postgres

_SETTINGS = """
[databases]
* = host={host} port=5432

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 200
"""


@asynccontextmanager
async def pooler(database: Database, mode: str, size: int = 20) -> AsyncIterator[str]:
    """A PgBouncer before the server; yields the address of the database through it. Its port tells nothing."""
    pgbouncer = tool("pgbouncer")
    port = closed_port()
    run_as = _unprivileged()
    with tempfile.TemporaryDirectory(prefix="push-listener-") as name:
        directory = Path(name)
        users, settings = directory / "users", directory / "pgbouncer.ini"
        users.write_text(f'"postgres" ""\n"{SUPERUSER}" ""\n')
        host = conninfo_to_dict(database.dsn)["host"]
        settings.write_text(_SETTINGS.format(host=host, port=port, users=users, mode=mode, size=size))
        for path in (directory, users, settings):
            if run_as:  # it refuses to run as root, as Postgres does
                os.chown(path, run_as["user"], run_as["group"])
        process = await asyncio.create_subprocess_exec(
            pgbouncer,
            settings,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            **run_as,
        )
        dsn = make_conninfo(database.dsn, host="127.0.0.1", port=port)
        try:
            await served(dsn)
            yield dsn
        finally:
            process.kill()
            await process.wait()


async def served(dsn: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(dsn, prepare_threshold=None):
                    return
            except psycopg.OperationalError:
                await asyncio.sleep(0.05)


@pytest.fixture
async def transaction(database: Database) -> AsyncIterator[str]:
    async with pooler(database, "transaction") as dsn:
        yield dsn


@pytest.fixture
async def session(database: Database) -> AsyncIterator[str]:
    async with pooler(database, "session") as dsn:
        yield dsn


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_the_encoding_is_kept_in_transaction_mode(postgres: Server, encoding: str) -> None:
    """Whatever another client of the same backend has chosen."""
    with postgres.encoded(encoding) as database:
        async with pooler(database, "transaction", size=1) as dsn:
            pool = make_pool(dsn, prepares=False)
            await pool.open()
            try:
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
            finally:
                await pool.close()


async def work_through(env: dict[str, str], rows: Rows, emulator: Emulator) -> str:
    """Sends rows, by far more statements than it takes to prepare them; returns the metrics."""
    async with program("run", env=env) as running:
        await running.said("ready")
        for wave in range(20):
            await rows.query(
                "insert into push_notifications (device_token, title) "
                "select 'phone-' || %(wave)s || '-' || n, 't' from generate_series(1, 10) n",
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
    assert (emulator.stats()["accepted"], emulator.stats()["duplicates"]) == (200, 0)
    assert "push_database_errors_total{" not in metrics
    return metrics


# --- transaction mode ----------------------------------------------------------------------------------------


async def test_alone_it_is_refused_with_a_word_on_what_to_do(transaction: str, emulator: Emulator) -> None:
    code, _, said = await run("run", env=environment(transaction, emulator))
    assert code == 2
    assert "it is a pooler in transaction mode (on Supabase: port 6543)" in said
    assert "Set LISTEN_DATABASE_URL" in said
    assert "WAKEUP=sweep" in said
    assert "Traceback" not in said


async def test_so_it_is_as_the_address_to_listen_at(
    database: Database, transaction: str, emulator: Emulator
) -> None:
    env = environment(database.dsn, emulator, listen_database_url=transaction)
    code, _, said = await run("run", env=env)
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


async def test_migrations_are_refused_with_a_word_on_what_to_do(
    blank_database: Database, emulator: Emulator
) -> None:
    async with pooler(blank_database, "transaction") as dsn:
        for arguments in (["migrate"], ["migrate", "--status"], ["migrate", "--down", "0"]):
            code, _, said = await run(*arguments, env=environment(dsn, emulator))
            assert (code, "a pooler in transaction mode" in said) == (1, True), arguments
            assert "LISTEN_DATABASE_URL" in said
            assert "Traceback" not in said
        env = environment(dsn, emulator, listen_database_url=blank_database.dsn)
        code, out, _ = await run("migrate", env=env)
        assert (code, "migrations applied" in out) == (0, True)


# --- session mode --------------------------------------------------------------------------------------------


async def test_in_session_mode_everything_works(session: str, rows: Rows, emulator: Emulator) -> None:
    await work_through(environment(session, emulator, sweep_interval="3600"), rows, emulator)


async def test_in_session_mode_migrations_work(blank_database: Database) -> None:
    async with pooler(blank_database, "session") as dsn:
        assert await asyncio.to_thread(migrate.apply, dsn)


async def test_a_worker_behind_it_that_is_killed_is_missed_at_once(
    database: Database, session: str, rows: Rows, emulator: Emulator
) -> None:
    """The pooler lets go of the lock when its client is gone."""
    hang = emulator.add_fault("timeout")
    async with program("run", env=environment(session, emulator)) as victim:
        await victim.said("ready")
        push_id = await rows.add(device_token="t", title="t")
        await emulator.wait_received(1)
        async with program("run", env=environment(session, emulator)) as heir:
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


@pytest.mark.parametrize("size", [2, 5, 20])
async def test_transaction_mode_is_found_out_however_busy_it_is(database: Database, size: int) -> None:
    async with pooler(database, "transaction", size) as dsn:
        assert await is_transaction_pooler(dsn)
        async with busy(dsn):
            for _ in range(10):
                assert await is_transaction_pooler(dsn)
                assert await asyncio.to_thread(is_transaction_pooler_blocking, dsn)


async def test_neither_a_direct_connection_nor_session_mode_is_taken_for_it(
    database: Database, session: str
) -> None:
    for dsn in (database.dsn, session):
        async with busy(dsn):
            for _ in range(5):
                assert not await is_transaction_pooler(dsn)
                assert not is_transaction_pooler_blocking(dsn)  # in a thread with a running event loop


async def test_a_pooler_without_a_second_connection_is_not_waited_for_without_end(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.postgres.connect._PROBE_PATIENCE_S", 0.5)
    async with pooler(database, "session", 1) as dsn:
        with pytest.raises(psycopg.OperationalError):
            await is_transaction_pooler(dsn)
