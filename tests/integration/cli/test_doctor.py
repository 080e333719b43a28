"""``push-listener doctor``, on databases in which one thing is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import orjson
import psycopg
import pytest
from click.testing import CliRunner, Result

from listener import config
from listener.cli.main import main
from listener.schema import doctor
from listener.schema.doctor import Finding, Level
from tests.support.access import WORKER, make_worker
from tests.support.postgres import Database, Server, Template


def examine(database: Database, **settings: object) -> list[Finding]:
    return list(doctor.examine(config.load_database(database_url=database.dsn, **settings)))


def found(findings: list[Finding], level: Level) -> list[str]:
    return [f"{finding.group}: {finding.text}" for finding in findings if finding.level is level]


def test_a_new_installation_has_nothing_wrong(database: Database) -> None:
    findings = examine(database)
    assert found(findings, Level.WRONG) == []
    assert {finding.group for finding in findings} >= {
        "connections",
        "migrations",
        "privileges",
        "who can cause, change or read a push",
    }


def test_missing_migrations(blank_database: Database) -> None:
    (line,) = found(examine(blank_database), Level.WRONG)
    assert line.startswith("migrations: ")
    assert "are not applied" in line


def test_changed_privileges(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        owner.execute("grant execute on function cancel_push to anon")
    wrong = [finding for finding in examine(database) if finding.level is Level.WRONG]
    assert [finding.text for finding in wrong] == ["anon may execute on public.cancel_push(uuid)"]
    assert wrong[0].remedy == "run push-listener migrate: it sets them again"
    # The listener's own login sees this too.
    make_worker(database)
    findings = doctor.examine(config.load_database(database_url=database.dsn_as(WORKER)))
    assert "anon may execute on public.cancel_push(uuid)" in [finding.text for finding in findings]


def test_a_function_that_lets_everybody_push(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        owner.execute(
            "create function shout(p text) returns void language sql security definer as "
            "$$ insert into public.push_notifications (topic, title) values ('all', p) $$"
        )
    (line,) = [line for line in found(examine(database), Level.LOOK) if "shout" in line]
    assert "everybody may cause a push" in line


def test_a_stranger_that_holds_a_lock(database: Database) -> None:
    with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
        superuser.execute("create role test_stranger_on_lock login")
    try:
        with psycopg.connect(database.dsn_as("test_stranger_on_lock"), autocommit=True) as stranger:
            stranger.execute("select pg_advisory_lock(1886745449, 0)")
            (line,) = found(examine(database), Level.WRONG)
            assert str(stranger.info.backend_pid) in line
            assert "test_stranger_on_lock" in line
        assert found(examine(database), Level.WRONG) == []
    finally:
        with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
            superuser.execute("drop role test_stranger_on_lock")


def test_a_copy_with_waiting_rows(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        owner.execute("insert into push_listener.served values ('1', 5, 'elsewhere', 'postgres')")
        assert found(examine(database), Level.WRONG) == []
        owner.execute("insert into push_notifications (topic, title) values ('news', 't')")
    (line,) = found(examine(database), Level.WRONG)
    assert "is a copy" in line
    assert "--adopt-copy" in line


@pytest.fixture
def two(postgres: Server) -> Iterator[tuple[Database, Database]]:
    """Two databases of one server, and a login for the listener of the first one."""
    with ExitStack() as stack:
        databases = [stack.enter_context(postgres.database(Template.MIGRATED)) for _ in range(2)]
        superuser = stack.enter_context(psycopg.connect(databases[0].superuser_dsn, autocommit=True))
        superuser.execute("create role test_of_one login in role push_listener")
        yield databases[0], databases[1]
        superuser.execute("drop owned by test_of_one")
        superuser.execute("drop role test_of_one")


def test_logins_that_can_connect_to_other_databases(two: tuple[Database, Database]) -> None:
    one, other = two
    with psycopg.connect(other.dsn, autocommit=True) as owner:
        owner.execute("insert into push_notifications (topic, title) values ('news', 't')")
    with psycopg.connect(other.dsn_as("test_of_one"), autocommit=True) as worker:
        assert worker.execute("select title from push_notifications").fetchall() == [("t",)]
    (line,) = [line for line in found(examine(one), Level.LOOK) if line.startswith("other databases")]
    assert "test_of_one" in line
    assert other.name in line

    # The remedy helps.
    with psycopg.connect(other.superuser_dsn, autocommit=True) as superuser:
        superuser.execute(f"revoke connect on database {other.name} from public".encode())
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(other.dsn_as("test_of_one"))
    lines = [line for line in found(examine(one), Level.LOOK) if line.startswith("other databases")]
    assert not any(other.name in line for line in lines)


def call(dsn: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments], env={"DATABASE_URL": dsn})


def test_the_command(database: Database) -> None:
    good = call(database.dsn)
    assert good.exit_code == 0, good.output
    assert "privileges" in good.output
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        owner.execute("grant execute on all functions in schema public to anon")
    bad = call(database.dsn)
    assert bad.exit_code == 1
    # Long lines are not wrapped.
    assert any(
        "enqueue_push(uuid,text," in line and "with time zone)" in line for line in bad.output.splitlines()
    )
    assert bad.output.count("run push-listener migrate") == 1  # once for everything that it repairs
    rows = orjson.loads(call(database.dsn, "--json").stdout)
    assert {row["level"] for row in rows} >= {"good", "wrong"}


def test_a_database_that_cannot_be_reached() -> None:
    result = call("postgresql://u:s3cr3t-of-mine@127.0.0.1:1/nowhere")
    assert result.exit_code == 1
    assert "DATABASE_URL" in result.output
    for part in ("s3cr3t", "nowhere", "127.0.0.1"):
        assert part not in result.output


def test_waiting_pushes_that_would_reach_nobody(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        owner.execute(
            "insert into push_notifications (user_id, device_token, title) values "
            "(gen_random_uuid(), null, 't'), (null, 't', 't')"
        )
    (line,) = [line for line in found(examine(database), Level.LOOK) if line.startswith("recipients: ")]
    assert line.startswith("recipients: 1 waiting pushes go to users without a device in push_recipients")
