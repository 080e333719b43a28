"""Nothing that is a secret comes out of a process, whatever happens to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from structlog.testing import capture_logs

from listener.emulator import Emulator, answers
from listener.limits.health import Pause
from listener.postgres import stats
from listener.postgres.errors import Condition
from listener.service import Service
from tests.support.cli import invoke
from tests.support.postgres import Database
from tests.support.service import (
    Place,
    environment,
    get,
    naming,
    program,
    python,
    rows_of,
    serving,
    settings_for,
    until,
)

SECRET = "S3cr3t"
"""In every token, title, body, value and password below."""


def with_password(dsn: str) -> str:
    """The socket trusts everybody, so the password is not asked for; it is there to be kept."""
    return dsn.replace("@/", f":{SECRET}pw@/")


async def test_the_whole_output_of_an_eventful_life(database: Database) -> None:
    async with Emulator(latency=0.3) as emulator:
        key = emulator.service_account
        emulator.add_fault(f"unavailable,token={SECRET}-busy,times=1")
        emulator.add_fault(f"reset,token={SECRET}-reset,times=1")
        emulator.add_fault(f"invalid_token,token={SECRET}-invalid")
        emulator.add_fault(
            f"invalid_argument,token={SECRET}-touchy"
        )  # an accepted push would be kept without a word
        env = environment(
            with_password(database.dsn),
            emulator,
            log_level="debug",
            retry_min_delay="0.1",
            metrics_token=f"{SECRET}-metrics",
            port="0",
        )
        async with program("run", env=env, forked=True) as running:
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
                await running.printed_to_stderr("row cannot be settled")
                emulator.add_fault("permission_denied")
                refused = [await rows.add(device_token=f"{SECRET}-paused-{n}", **text) for n in range(3)]
                await rows.until(
                    lambda found: all(found[each]["error_code"] == "PERMISSION_DENIED" for each in refused)
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
    for event in (
        "claimed",
        "answered",
        "settled",
        "row cannot be settled",
        "sending paused",
        "push dead",
        "stopped",
    ):
        assert event in output
    assert SECRET not in output
    assert "ya29" not in output
    for name in ("private_key", "private_key_id", "client_email"):
        assert key[name][:40] not in output
    assert "PRIVATE KEY" not in output


async def test_a_password_that_is_refused_is_not_repeated(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(f"alter database {database.name} connection limit 0".encode())
    async with Emulator() as emulator:
        env = environment(with_password(database.dsn), emulator, log_level="debug")
        command = ["send", "--token", f"{SECRET}-t", "--title", SECRET]
        async with program(*command, env=env, forked=True) as running:
            assert await running.ended() == 1
    assert "Traceback" not in running.output
    assert SECRET not in running.output


@pytest.mark.asyncio(loop_scope="module")
async def test_the_pages_of_the_web_server(place: Place) -> None:
    rows = place.rows
    settings = settings_for(with_password(place.database.dsn), place.emulator)
    async with serving(settings) as service:
        for token in ("good", "bad token"):
            # The page shows titles, and nothing else of a payload.
            await rows.add(device_token=f"{SECRET}-{token}", title="t", body=SECRET, data={"a": SECRET})
        await rows.over()
        assert service.port is not None
        pages = [await get(service.port, path) for path in ("/", "/metrics", "/healthz", "/readyz")]
    assert {status for status, _ in pages} == {200}
    assert SECRET not in "".join(text for _, text in pages)


# --- addresses that are wrong ------------------------------------------------------------------------------------


GIVEN = "postgresql://u:S3cr@tTail99@host/db"
PARTS = ("s3cr", "tail", "99@")
"""Of what is marked below, in lower case: nothing of it may be shown."""

AMBIGUOUS = {
    "@ in the password": (GIVEN, "write it as %40"),
    "/ in the password": ("postgresql://u:12/S3cr3tTail99@host/db", "write it as %2F"),
    "? in the password": ("postgresql://u:S3cr3t?Tail99=1@host/db", "write ? as %3F"),
    "% in the password": ("postgresql://u:S3cr3t%Tail99@host/db", "write it as %25"),
    "space in the password": ("postgresql://u:S3cr3t Tail99@host/db", "write a space as %20"),
    "no host": ("postgresql://u:S3cr3tTail99/db", "has a port that is no number"),
    "no name for a host": ("host=S3cr3t@Tail99 user=u", "has a host that is neither"),
    "no parameter": ("postgresql://u:p@host/db?S3cr3t=Tail99", "has a parameter that libpq does not know"),
}

# {socket}: the directory of a server's socket. Each is refused or not answered in a way of its own.
WRONG = {
    "nothing listens": ("postgresql://S3cr3tUser:S3cr3tTail99@127.0.0.1:1/S3cr3tDb", "the host refuses the conn"),
    "no such host": ("postgresql://u:Tail99@S3cr3tHost.invalid/db", "the name of the host cannot be resolved"),
    "no socket": ("postgresql://u:Tail99@/db?host=/S3cr3tDirectory", "no server listens on the socket"),
    "no such user": ("postgresql://S3cr3tUser:Tail99@/postgres?host={socket}", "the server refuses the user name"),
    "no such database": ("postgresql://postgres:Tail99@/S3cr3tDb?host={socket}", "the server has no database of"),
    "no such setting": (
        "postgresql://postgres:Tail99@/postgres?host={socket}&options=-c%20S3cr3tSetting%3D1",
        "the connection failed; the reason is withheld",
    ),
    "wrong parameter": ("postgresql://u:Tail99@127.0.0.1:1/db?sslmode=S3cr3tMode", "a parameter of the address"),
    "no such service": ("service=S3cr3tService password=Tail99", "the service that the address names"),
}  # fmt: skip

CONDITIONS = {
    "no such user": Condition.LOGIN,
    "no such database": Condition.NO_DATABASE,
}
"""What /readyz says of a wrong address besides."""

COMMANDS = (
    ["migrate"],
    ["migrate", "--status"],
    ["migrate", "--dry-run"],
    ["migrate", "--down", "0"],
    ["stats"],
    ["stats", "--json"],
    ["send", "--token", "t", "--title", "t", "--json"],
    ["purge", "--older-than", "30d"],
)


def address(template: str, database: Database) -> str:
    return template.format(socket=parse_qs(urlsplit(database.dsn).query)["host"][0])


def tried(faults: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Every command with two of the faults, and every fault with two commands."""
    for number, fault in enumerate(faults):
        for step in (0, 3):
            yield fault, COMMANDS[(number + step) % len(COMMANDS)]


def shows_nothing(output: str) -> bool:
    return not any(part in output.lower() for part in PARTS)


async def test_ambiguous_addresses_stop_the_start() -> None:
    """Two at a time, one in each of the two settings."""
    faults = [(fault, *each) for fault, each in AMBIGUOUS.items()]
    async with Emulator() as emulator:
        for first, second in zip(faults[::2], faults[1::2], strict=True):
            with naming(f"{first[0]}, {second[0]}"):
                variables = environment(first[1], emulator, listen_database_url=second[1])
                done = await invoke(None, "run", **variables)
                assert (done.exit_code, done.stdout) == (2, "")
                head, *lines = done.stderr.splitlines()
                assert head == "Error: the configuration cannot be used:"
                assert [line.split()[0] for line in lines] == ["DATABASE_URL", "LISTEN_DATABASE_URL"]
                assert first[2] in lines[0]
                assert second[2] in lines[1]
                assert shows_nothing(done.output)


async def test_no_command_takes_an_ambiguous_address() -> None:
    for fault, command in tried(AMBIGUOUS):
        given, advice = AMBIGUOUS[fault]
        with naming(f"{fault}: {command}"):
            done = await invoke(given, *command)
            assert (done.exit_code, done.stdout) == (2, "")
            assert advice in done.stderr
            assert shows_nothing(done.output)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_wrong_address_is_told_by_its_kind_in_the_log(place: Place) -> None:
    """Each that the service takes in a way of its own; the commands below have all kinds."""
    database, _, emulator = place
    for fault in ("nothing listens", "no such user", "no such database", "no such setting"):
        with naming(fault):
            template, told = WRONG[fault]
            env = environment(address(template, database), emulator, log_level="debug", shutdown_grace="3600")
            async with program("run", env=env, forked=True) as running:
                record = await running.said("database cannot be reached")
                conditions = f"{CONDITIONS[fault]}\n" if fault in CONDITIONS else ""
                assert await get(await running.port(), "/readyz") == (
                    503,
                    f"the database has not been reached yet\n{conditions}",
                )
                running.terminate()
                assert await running.ended() == 0
            assert record["reason"].startswith(told)
            assert record["setting"] == "DATABASE_URL"
            assert shows_nothing(running.output)


async def test_a_wrong_address_is_told_by_its_kind_by_every_command(database: Database) -> None:
    for fault, command in tried(WRONG):
        template, told = WRONG[fault]
        with naming(f"{fault}: {command}"):
            done = await invoke(address(template, database), *command)
            assert (done.exit_code, done.stdout) == (1, "")
            assert done.stderr.startswith(f"Error: the database: {told}")
            assert shows_nothing(done.output)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_log_names_the_setting_that_is_wrong(place: Place) -> None:
    other = "postgresql://u:S3cr3t@127.0.0.1:1/Tail99"
    env = environment(place.database.dsn, place.emulator, listen_database_url=other)
    async with program("run", env=env, forked=True) as running:
        record = await running.said("database cannot be reached")
        running.terminate()
        assert await running.ended() == 0
    assert record["setting"] == "LISTEN_DATABASE_URL"
    assert shows_nothing(running.output)


# --- faults of our own ---------------------------------------------------------------------------------------------


async def test_a_fault_that_no_command_expects_is_told_without_its_text(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(dsn: str, days: int) -> None:
        try:
            raise KeyError(dsn, SECRET)
        except KeyError as error:
            raise ExceptionGroup(SECRET, [RuntimeError(SECRET)]) from error

    monkeypatch.setattr(stats, "read", read)
    done = await invoke(database.dsn, "stats")
    assert (done.exit_code, done.stdout) == (1, "")
    assert isinstance(done.exception, SystemExit)
    for name in ("KeyError", "ExceptionGroup", "RuntimeError", "test_secrets.py", "withheld"):
        assert name in done.stderr
    assert SECRET not in done.stderr
    assert database.name not in done.stderr


_LOST_FAULTS = """
import asyncio, gc, logging, sys
from listener import log, process

async def fails():
    raise RuntimeError("S3cr3t")

async def main():
    task = asyncio.create_task(fails(), name="a")
    await asyncio.wait({task})
    del task
    gc.collect()
    asyncio.get_running_loop().call_soon(lambda text: 1 / 0, "S3cr3t")
    await asyncio.sleep(0)
    try:
        await fails()
    except RuntimeError:
        logging.getLogger("somebody.else").exception("in a handler")

if sys.argv[1] == "silent":
    log.silence_drivers()
else:
    log.configure(sys.argv[1], "debug")
logging.getLogger("psycopg").warning("S3cr3t")
logging.getLogger("psycopg.pool").warning("S3cr3t")
process.run(main())
"""


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_what_nothing_handles_is_logged_without_its_text(log_format: str) -> None:
    async with python("-c", _LOST_FAULTS, log_format, env=dict(os.environ), forked=True) as running:
        assert await running.ended() == 0
    assert running.err.count("unhandled exception") == 2
    for told in ("in a handler", "RuntimeError", "ZeroDivisionError"):
        assert told in running.err
    assert SECRET not in running.output


async def test_drivers_are_silent_where_no_log_is_configured() -> None:
    async with python(
        "-c", _LOST_FAULTS.replace("process.run", "id"), "silent", env=dict(os.environ), forked=True
    ) as running:
        await running.ended()
    assert SECRET not in running.output


# --- what /readyz tells --------------------------------------------------------------------------------------------


async def readiness(service: Service) -> tuple[int, str]:
    assert service.port is not None
    return await get(service.port, "/readyz")


async def paused(service: Service) -> None:
    await until(lambda: service.pause is not None)


@pytest.mark.asyncio(loop_scope="module")
async def test_readyz_tells_that_fcm_refuses_but_not_its_words(place: Place) -> None:
    async with Emulator(project_id="s3cr3t-project") as emulator:
        emulator.add_fault("permission_denied")
        with capture_logs() as said:
            async with serving(settings_for(place.database.dsn, emulator)) as service:
                await place.rows.add(device_token="t", title="t")
                await paused(service)
                assert await readiness(service) == (503, f"sending is paused: {Pause.REFUSED}\n")
                await until(lambda: any(each["event"] == "sending paused" for each in said))
    (record,) = [each for each in said if each["event"] == "sending paused"]
    assert "s3cr3t-project" in record["reason"]  # the log has FCM's words


@pytest.mark.asyncio(loop_scope="module")
async def test_readyz_tells_that_there_is_no_access_token_but_not_why(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, emulator = place.rows, place.emulator
    refusal = answers.oauth_error("invalid_grant", SECRET)
    monkeypatch.setattr(answers, "OAUTH_ERRORS", {"oauth_invalid_grant": refusal})
    emulator.add_fault("oauth_invalid_grant")
    async with serving(place.settings()) as service:
        await rows.add(device_token="t", title="t")
        await paused(service)
        assert service._health is not None
        assert SECRET in str(service._health.reason)
        assert await readiness(service) == (503, f"sending is paused: {Pause.NO_ACCESS_TOKEN}\n")
