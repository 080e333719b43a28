"""The ``push-listener`` command: what it does, what it says, and its exit codes."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import click
import orjson
import psycopg
import pytest
from click.testing import CliRunner, Result

from listener import __version__, config
from listener.cli.main import SUMMARIES, main
from listener.emulator import Emulator
from listener.schema import migrate
from listener.service import Service
from tests.support.postgres import Database
from tests.support.service import Rows, environment, program, python, run, serving, settings_for

pytestmark = pytest.mark.newest_postgres

AWAY = "postgresql://postgres:S3cr3t@127.0.0.1:1/db"


async def invoke(dsn: str | None, *arguments: str, **variables: str) -> Result:
    """Runs a command in a thread, with DATABASE_URL and ``variables`` set, and no other variable of push-listener."""
    names = {variable.name for variable in config.describe()} & os.environ.keys()
    env: dict[str, str | None] = {**dict.fromkeys(names), **variables}
    if dsn is not None:
        env["DATABASE_URL"] = dsn
    return await asyncio.to_thread(CliRunner().invoke, main, list(arguments), env=env)


# --- usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUMMARIES)
async def test_every_command_documents_itself_and_its_options(name: str) -> None:
    done = await invoke(None, name, "--help")
    assert done.exit_code == 0
    assert done.output.startswith(f"Usage: main {name} ")
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.help
    assert command.help.split("\n\n")[0] == SUMMARIES[name]
    assert [each.name for each in command.params if isinstance(each, click.Option) and not each.help] == []


async def test_help_lists_every_command() -> None:
    done = await invoke(None, "--help")
    assert done.exit_code == 0
    for name, summary in SUMMARIES.items():
        assert f"{name} {summary}" in words(done.output)


def words(text: str) -> str:
    """A text without its line breaks and indentation."""
    return " ".join(text.split())


async def test_version() -> None:
    done = await invoke(None, "--version")
    assert (done.exit_code, done.output) == (0, f"push-listener, version {__version__}\n")


async def test_help_of_run_lists_every_variable() -> None:
    done = await invoke(None, "run", "--help")
    for variable in config.describe():
        default = f" [{variable.default}]" if variable.default else ""
        assert f" {variable.name} {variable.meaning}{default}" in words(done.output)
        assert f"\n{variable.group}:\n" in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["run", "--port", "80"],
        ["migrate", "--discard-data"],
        ["migrate", "--status", "--dry-run"],
        ["migrate", "--down", "0", "--status"],
        ["migrate", "--down", "-1"],
        ["migrate", "--json"],
        ["migrate", "--down", "0", "--json"],
        ["migrate", "--adopt-copy", "expire", "--status"],
        ["migrate", "--adopt-copy", "keep"],
        ["migrate", "--share-new-columns", "--status"],
        ["migrate", "--discard-data", "--dry-run"],
        ["migrate", "--json", "--dry-run"],
        ["send"],
        ["send", "--title", "t"],
        ["send", "--token", "t"],
        ["send", "--token", "t", "--topic", "u", "--title", "x"],
        ["send", "--token", "t", "--data", "{"],
        ["send", "--token", "t", "--data", "[1]"],
        ["send", "--token", "t", "--title", "x", "--priority", "urgent"],
        ["send", "--token", "t", "--title", "x", "--wait", "0"],
        ["send", "--user", "nobody", "--title", "x"],
        ["stats", "--days", "0"],
        ["emulator", "--fault", "no_such_fault"],
        ["emulator", "--port", "70000"],
    ],
    ids=" ".join,
)
async def test_wrong_usage(arguments: list[str]) -> None:
    done = await invoke(AWAY, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: ")
    assert "Error: " in done.stderr


@pytest.mark.parametrize("command", [["migrate"], ["stats"], ["send", "--token", "t", "--title", "x"]])
async def test_without_a_database_address(command: list[str]) -> None:
    done = await invoke(None, *command)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "Error: the configuration cannot be used:\n  DATABASE_URL is not set\n"


@pytest.mark.parametrize(
    "command", [["migrate"], ["migrate", "--status"], ["stats"], ["send", "--token", "t", "--title", "x"]]
)
async def test_a_database_that_is_away(command: list[str]) -> None:
    done = await invoke(AWAY, *command)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: the database: ")
    assert "S3cr3t" not in done.stderr
    assert isinstance(done.exception, SystemExit)


@pytest.mark.parametrize("command", [["stats"], ["send", "--token", "t", "--title", "x"]])
async def test_a_database_without_the_tables(blank_database: Database, command: list[str]) -> None:
    done = await invoke(blank_database.dsn, *command)
    assert (done.exit_code, done.stdout) == (1, "")
    assert (
        done.stderr
        == "Error: the database has not been migrated to this version: run push-listener migrate\n"
    )


NEEDING_THE_DATABASE = [
    ["migrate", "--status"],
    ["doctor"],
    ["send", "--token", "t", "--title", "x"],
    ["stats"],
    ["purge", "--older-than", "30d"],
]


@pytest.mark.parametrize("command", NEEDING_THE_DATABASE, ids=" ".join)
async def test_wrong_settings_of_the_service_do_not_stop_a_command_that_works_on_the_database(
    database: Database, command: list[str]
) -> None:
    wrong = {
        "FCM_SERVICE_ACCOUNT_JSON": '{"type": "service_account", "private_key": "S3cr3t"}',
        "GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/key.json",
        "PORT": "none",
        "LEASE": "1",
    }
    done = await invoke(database.dsn, *command, **wrong)
    assert done.exit_code == 0, done.output


# --- run -----------------------------------------------------------------------------------------------------


async def test_run_tells_every_fault_of_its_configuration_at_once() -> None:
    env = {
        "PATH": os.environ.get("PATH", ""),
        "DATABASE_URL": "mysql://root:S3cr3t@localhost/db",
        "LISTEN_DATABASE_URL": "postgresql://root:S3cr3t@localhost:S3cr3t/db",
        "FCM_SERVICE_ACCOUNT_JSON": '{"type": "service_account", "private_key": "S3cr3t"}',
        "GOOGLE_APPLICATION_CREDENTIALS": "/S3cr3t/key.json",
        "FCM_ENDPOINT": "S3cr3t",
        "FCM_PROJECT_ID": "S3cr3t!",
        "PORT": "S3cr3t",
        "METRICS_TOKEN": "S3cr3t",
        "LOG_LEVEL": "S3cr3t",
        "MAX_IN_FLIGHT": "0",
        "LEASE": "10",
        "RETRY_MAX_DELAY": "1",
        "FCM_CONNECT_TIMEOUT": "16",
    }
    code, out, err = await run("run", env=env)
    assert (code, out) == (2, "")
    head, *faults = err.splitlines()
    assert head == "Error: the configuration cannot be used:"
    assert {line.split()[0].rstrip(":") for line in faults} == env.keys() - {"PATH"}
    assert "S3cr3t" not in err


async def test_run_tells_of_credentials_and_settings_at_once(tmp_path: Path) -> None:
    (tmp_path / "k").write_text('{"type": "S3cr3t"}')
    env = {
        "PATH": os.environ["PATH"],
        "LEASE": "1",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "k"),
    }
    code, _, err = await run("run", env=env)
    assert code == 2
    assert [line.split()[0] for line in err.splitlines()[1:]] == [
        "DATABASE_URL",
        "LEASE",
        "FCM_SERVICE_ACCOUNT_JSON",
    ]


async def test_run_without_credentials(database: Database, emulator: Emulator, tmp_path: Path) -> None:
    env = environment(
        database.dsn,
        emulator,
        fcm_service_account_json="",
        google_application_credentials=str(tmp_path / "k"),
    )
    (tmp_path / "k").write_text('{"type": "S3cr3t"}')
    code, out, err = await run("run", env=env)
    assert (code, out) == (2, "")
    assert err.startswith("Error: the configuration cannot be used:\n  FCM_SERVICE_ACCOUNT_JSON / GOOGLE_")
    assert "Traceback" not in err


_WITH_FILES = """
import resource
from listener.cli import main
resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {1}))
main.main(["run"])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "in_flight"), [(160, 4096, 1250), (160, 160, 60), (4096, 4096, 1250)]
)
async def test_no_more_is_in_flight_than_files_may_be_open(
    database: Database, emulator: Emulator, soft: int, hard: int, in_flight: int
) -> None:
    async with python(
        "-c", _WITH_FILES.format(soft, hard), env=environment(database.dsn, emulator)
    ) as running:
        assert (await running.said("ready"))["in_flight_at_most"] == in_flight
        assert any(r["event"] == "MAX_IN_FLIGHT lowered" for r in running.records) == (in_flight < 1250)


async def test_too_few_files_may_be_open(database: Database, emulator: Emulator) -> None:
    async with python("-c", _WITH_FILES.format(90, 90), env=environment(database.dsn, emulator)) as running:
        assert await running.ended() == 2
        assert "MAX_IN_FLIGHT: the limit of open files allows 0; raise it (ulimit -n)" in running.err


# --- migrate -------------------------------------------------------------------------------------------------


async def test_migrate_and_back(blank_database: Database) -> None:
    dsn, known = blank_database.dsn, migrate.load()

    before = await invoke(dsn, "migrate", "--status", "--json")
    assert [each["applied_at"] for each in orjson.loads(before.stdout)] == [None] * len(known)

    planned = await invoke(dsn, "migrate", "--dry-run")
    assert planned.exit_code == 0
    for migration in known:
        assert f"-- {migration.version:04d}_{migration.name}\n{migration.up}" in planned.stdout
    assert (await invoke(dsn, "migrate", "--status", "--json")).stdout == before.stdout

    first = await invoke(dsn, "migrate")
    assert first.exit_code == 0
    assert first.stdout.splitlines() == [
        *(f"applied {m.version:04d}_{m.name}" for m in known),
        f"{len(known)} migrations applied",
    ]
    again = await invoke(dsn, "migrate")
    assert (again.exit_code, again.stdout) == (0, "nothing to do: the database is up to date\n")
    assert (await invoke(dsn, "migrate", "--dry-run")).stdout == ""
    after = orjson.loads((await invoke(dsn, "migrate", "--status", "--json")).stdout)
    assert all(each["applied_at"] and not each["changed"] for each in after)
    table = await invoke(dsn, "migrate", "--status")
    assert table.exit_code == 0
    assert all(m.name in table.stdout for m in known)

    back = await invoke(dsn, "migrate", "--down", "0")
    assert back.exit_code == 0
    assert back.stdout.splitlines()[-1] == f"{len(known)} migrations rolled back"
    with psycopg.connect(dsn) as conn:
        assert conn.execute("select to_regclass('push_notifications')").fetchone() == (None,)


async def test_the_way_back_does_not_take_rows_with_it_unless_told(database: Database, rows: Rows) -> None:
    await rows.query("drop trigger test_tell on push_notifications")
    await rows.add(device_token="t", title="t")
    done = await invoke(database.dsn, "migrate", "--down", "0")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert "push_notifications" in done.stderr
    assert len(await rows.all()) == 1
    assert (await invoke(database.dsn, "migrate", "--down", "0", "--discard-data")).exit_code == 0


# --- send ----------------------------------------------------------------------------------------------------


async def send(database: Database, *arguments: str) -> tuple[int, str, str]:
    """``send`` as a process of its own: the service in this one writes its log to standard output."""
    env = {"PATH": os.environ.get("PATH", ""), "DATABASE_URL": database.dsn}
    return await run("send", *arguments, env=env)


async def test_send_and_wait(database: Database, rows: Rows, emulator: Emulator, service: Service) -> None:
    code, out, _ = await send(
        database, "--token", "phone", "--title", "T", "--body", "B", "--data", '{"k": 1}',
        "--priority", "high", "--channel", "c", "--expires-in", "60", "--wait", "20",
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
    assert 50 <= int(message["android"]["ttl"].removesuffix("s")) <= 60


async def test_send_to_what_cannot_be_reached(database: Database, service: Service) -> None:
    arguments = ["--token", "dead-phone", "--title", "T", "--wait", "20"]
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


async def test_send_and_wait_in_vain(database: Database) -> None:
    done = await invoke(database.dsn, "send", "--token", "t", "--title", "T", "--wait", "0.2")
    assert done.exit_code == 1
    assert done.stdout.endswith(" pending\n")


async def test_send_later_and_once_only(database: Database, rows: Rows) -> None:
    user = uuid4()
    arguments = ["send", "--user", str(user), "--title", "T", "--delay", "3600", "--idempotency-key", "k"]
    first, second = await invoke(database.dsn, *arguments), await invoke(database.dsn, *arguments)
    assert first.stdout == second.stdout
    (row,) = (await rows.all()).values()
    assert row["user_id"] == user
    assert 3500 < row["next_in"] <= 3600


async def test_a_row_that_the_database_refuses_is_told_without_a_traceback(
    database: Database, rows: Rows
) -> None:
    await rows.query("alter table push_notifications add check (title <> 'bad words')")
    done = await invoke(database.dsn, "send", "--token", "t", "--title", "bad words")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: the database: ")
    assert isinstance(done.exception, SystemExit)


# --- stats, emulator -------------------------------------------------------------------------------------------


async def test_stats(database: Database, emulator: Emulator, rows: Rows) -> None:
    async with serving(settings_for(database.dsn, emulator)):
        for token in ("a", "b", "dead-c"):
            await rows.add(device_token=token, title="t")
        await rows.over()
    await rows.query(
        "insert into push_notifications (device_token, title, next_attempt_at) "
        "values ('t', 't', now() + interval '1 hour'), ('t', 't', 'infinity')"
    )
    done = await invoke(database.dsn, "stats", "--json")
    assert done.exit_code == 0
    told = orjson.loads(done.stdout)
    assert (told["waiting"], told["oldest_due"]) == ({"pending": 2}, 0.0)
    assert (told["sent"], told["dead"]) == (2, 1)
    table = await invoke(database.dsn, "stats")
    assert table.exit_code == 0
    assert "UNREGISTERED" in table.stdout


async def test_stats_of_rows_due_since_ever(database: Database, rows: Rows) -> None:
    await rows.query(
        "insert into push_notifications (device_token, title, next_attempt_at) values ('t', 't', '-infinity')"
    )
    told = orjson.loads((await invoke(database.dsn, "stats", "--json")).stdout)
    assert 0.0 <= told["oldest_due"] < 20.0


async def test_emulator(tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    async with program(
        "emulator", "--port", "0", "--fault", "unavailable,times=1", "--credentials", str(key),
        env={"PATH": os.environ.get("PATH", ""), "PYTHONUNBUFFERED": "1"},
    ) as running:  # fmt: skip
        await running.printed("/emulator/messages")
        endpoint = next(word for word in running.out.split() if word.startswith("http://"))
        async with aiohttp.ClientSession() as http, http.get(f"{endpoint}/emulator/faults") as answer:
            assert [rule["fault"] for rule in (await answer.json())["faults"]] == ["unavailable"]
        assert key.stat().st_mode & 0o777 == 0o600
        running.signal(signal.SIGINT)
        assert await running.ended() == 0
    assert "Traceback" not in running.output
