"""Nothing that is a secret comes out of a process, whatever happens to it."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from listener.emulator import Emulator
from tests.support.postgres import Database
from tests.support.service import environment, get, program, rows_of

pytestmark = pytest.mark.newest_postgres

SECRET = "S3cr3t"
"""In every token, title, body, value and password below."""


def with_password(dsn: str) -> str:
    """The socket trusts everybody, so the password is not asked for; it is there to be kept."""
    return dsn.replace("@/", f":{SECRET}pw@/")


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_the_whole_output_of_an_eventful_life(database: Database, log_format: str) -> None:
    async with Emulator(latency=0.3) as emulator:
        key = emulator.service_account
        emulator.add_fault(f"unavailable,token={SECRET}-busy,times=1")
        emulator.add_fault(f"reset,token={SECRET}-reset,times=1")
        emulator.add_fault(f"invalid_token,token={SECRET}-invalid")
        env = environment(
            with_password(database.dsn),
            emulator,
            log_level="debug",
            log_format=log_format,
            retry_floor="0.1",
            metrics_token=f"{SECRET}-metrics",
            port="0",
        )
        async with program("run", env=env) as running:
            async with rows_of(database.dsn) as rows:
                user = uuid4()
                await rows.device(f"{SECRET}-phone", user)
                await rows.device(f"dead-{SECRET}", user)
                text = {
                    "title": f"{SECRET} title",
                    "body": f"{SECRET} body",
                    "data": {"k": f"{SECRET} value"},
                }
                for token in ("good", "busy", "reset", "invalid", "bad token", "ü"):
                    await rows.add(device_token=f"{SECRET}-{token}", **text)
                await rows.add(device_token=f"dead-{SECRET}", **text)
                await rows.add(user_id=user, **text)
                await rows.add(topic=f"{SECRET}-topic", **text)
                await rows.add(topic=f"{SECRET} topic", **text)
                await rows.add(device_token="t", title=None, body=f"{SECRET} body", data=[SECRET])
                await rows.add(device_token="t", priority=SECRET, **text)
                await rows.add(device_token="t", options={SECRET: SECRET}, **text)
                await rows.add(device_token=f"{SECRET}{'x' * 50_000}", **text)
                await rows.connection.execute(
                    sql.SQL(
                        "create function no_thanks() returns trigger language plpgsql as "
                        "$$ begin raise exception 'no thanks: %', new.device_token; end $$; "
                        "create trigger no_thanks before update on push_notifications for each row "
                        "when (new.title = 'touchy' and new.status <> 'processing') execute function no_thanks()"
                    )
                )
                await rows.add(device_token=f"{SECRET}-touchy", title="touchy")
                await rows.until(
                    lambda found: sum(r["status"] in ("sent", "dead") for r in found.values()) >= 14
                )
                emulator.add_fault("permission_denied,times=1")
                await rows.add(device_token=f"{SECRET}-paused", **text)
                await rows.until(
                    lambda found: any(r["error_code"] == "PERMISSION_DENIED" for r in found.values())
                )
            await asyncio.to_thread(database.server.restart)
            async with rows_of(database.dsn) as rows:
                await rows.query(
                    "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() "
                    "and datname = current_database() and application_name like 'push-listener%'"
                )
            running.terminate()
            assert await running.ended() == 0
        output = running.output
    for event in ("row cannot be settled", "sending paused", "push dead", "stopped"):
        assert event in output
    assert SECRET not in output
    assert "ya29" not in output
    for name in ("private_key", "private_key_id", "client_email"):
        assert key[name][:40] not in output
    assert "PRIVATE KEY" not in output


async def test_a_start_that_cannot_reach_the_database(database: Database) -> None:
    async with Emulator() as emulator:
        env = environment(f"postgresql://u:{SECRET}@127.0.0.1:1/db", emulator, log_level="debug")
        async with program("run", env=env) as running:
            told = await running.said("database cannot be reached")
            assert told["reason"].startswith("the host refuses the connection")
            assert told["setting"] == "DATABASE_URL"
            running.terminate()
            assert await running.ended() == 0
        assert SECRET not in running.output


async def test_a_password_that_is_refused_is_not_repeated(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(f"alter database {database.name} connection limit 0".encode())
    async with Emulator() as emulator:
        env = environment(with_password(database.dsn), emulator, log_level="debug")
        for command in (["stats"], ["send", "--token", f"{SECRET}-t", "--title", SECRET], ["migrate"]):
            async with program(*command, env=env) as running:
                assert await running.ended() == 1
            assert "Traceback" not in running.output
            assert SECRET not in running.output


async def test_the_pages_of_the_web_server(database: Database) -> None:
    async with Emulator() as emulator:
        env = environment(with_password(database.dsn), emulator)
        async with program("run", env=env) as running, rows_of(database.dsn) as rows:
            await running.said("ready")
            for token in ("good", "bad token"):
                await rows.add(device_token=f"{SECRET}-{token}", title=SECRET)
            await rows.over()
            port = await running.port()
            pages = [await get(port, path) for path in ("/", "/metrics", "/healthz", "/readyz")]
    assert {status for status, _ in pages} == {200}
    assert SECRET not in "".join(text for _, text in pages)
