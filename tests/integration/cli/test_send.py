"""``push-listener send``: one push, and what became of it."""

from __future__ import annotations

import os
from typing import Any
from uuid import UUID, uuid4

import orjson

from listener.emulator import Emulator
from listener.service import Service
from tests.support.cli import invoke
from tests.support.postgres import Database
from tests.support.service import PATIENCE, Rows, run


async def send(database: Database, *arguments: str, forked: bool = True) -> tuple[int, str, str]:
    """``send`` as a process of its own: the service in this one writes its log to standard output."""
    env = {"PATH": os.environ.get("PATH", ""), "DATABASE_URL": database.dsn}
    return await run("send", *arguments, env=env, forked=forked)


async def test_send_and_wait(database: Database, rows: Rows, emulator: Emulator, service: Service) -> None:
    code, out, _ = await send(
        database, "--token", "phone", "--title", "T", "--body", "B", "--data", '{"k": 1}',
        "--priority", "high", "--channel", "c", "--expires-in", "120", "--wait", "60", forked=False,
    )  # fmt: skip
    assert code == 0
    push_id, status = out.split()
    assert status == "sent"
    (record,) = emulator.accepted
    assert (record.push_id, record.target) == (push_id, "phone")
    message: Any = record.message
    assert message["notification"] == {"title": "T", "body": "B"}
    assert message["data"]["k"] == "1"
    assert message["android"]["priority"] == "HIGH"
    assert message["android"]["notification"]["channel_id"] == "c"
    assert 120 - PATIENCE <= int(message["android"]["ttl"].removesuffix("s")) <= 120


async def test_send_to_an_installation(database: Database, emulator: Emulator, service: Service) -> None:
    arguments = ["--fid", "installation", "--user", str(uuid4()), "--title", "T", "--wait", "60"]
    code, out, _ = await send(database, *arguments)
    assert (code, out.split()[1]) == (0, "sent")
    (record,) = emulator.accepted
    assert (record.kind, record.target) == ("fid", "installation")


async def test_send_to_a_dead_token(database: Database, service: Service) -> None:
    arguments = ["--token", "dead-phone", "--title", "T", "--wait", "60"]
    code, out, _ = await send(database, *arguments)
    assert code == 1
    assert " dead (UNREGISTERED: FCM no longer knows this registration token" in out
    code, out, _ = await send(database, *arguments, "--json")
    assert code == 1
    told = orjson.loads(out)
    assert {name: told[name] for name in ("status", "retry_count", "error_code", "fcm_message_id")} == {
        "status": "dead",
        "retry_count": 0,
        "error_code": "UNREGISTERED",
        "fcm_message_id": None,
    }


async def test_send_without_waiting(database: Database, rows: Rows) -> None:
    done = await invoke(database.dsn, "send", "--topic", "news", "--title", "T", "--json")
    assert done.exit_code == 0
    told = orjson.loads(done.stdout)
    assert told["status"] == "pending"
    row = await rows.get(UUID(told["push_id"]))
    assert (row["topic"], row["title"], row["priority"]) == ("news", "T", "normal")


async def test_send_and_wait_without_a_service(database: Database) -> None:
    done = await invoke(database.dsn, "send", "--token", "t", "--title", "T", "--wait", "0.2")
    assert done.exit_code == 1
    assert done.stdout.endswith(" pending\n")
    assert "it still waits; does push-listener run?" in done.stderr


async def test_send_later_and_only_once(database: Database, rows: Rows) -> None:
    user = uuid4()
    arguments = ["send", "--user", str(user), "--title", "T", "--delay", "3600", "--idempotency-key", "k"]
    first, second = await invoke(database.dsn, *arguments), await invoke(database.dsn, *arguments)
    assert first.stdout == second.stdout
    (row,) = (await rows.all()).values()
    assert row["user_id"] == user
    assert 3500 < row["next_in"] <= 3600


async def test_a_row_that_the_database_refuses_is_reported_without_a_traceback(
    database: Database, rows: Rows
) -> None:
    await rows.query("alter table push_notifications add check (title <> 'bad words')")
    done = await invoke(database.dsn, "send", "--token", "t", "--title", "bad words")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: the database: ")
    assert isinstance(done.exception, SystemExit)
