"""Every command works whatever the database or the role sets for its sessions."""

from __future__ import annotations

from typing import LiteralString

import orjson
import psycopg
import pytest
from psycopg import sql

from listener.doctor.findings import Level
from listener.emulator import Emulator
from listener.postgres.connect import Address, ServicePool, fetch_value
from listener.schema.migrate import session
from tests.support.cli import invoke
from tests.support.doctor import examine
from tests.support.postgres import Database
from tests.support.service import rows_of, serving, settings_for

SETTINGS: dict[str, LiteralString] = {
    "DateStyle": "'SQL, DMY'",
    "TimeZone": "'Asia/Kolkata'",
    "IntervalStyle": "'sql_standard'",
    "search_path": "''",
    "default_transaction_isolation": "'serializable'",
    "extra_float_digits": "0",
    "bytea_output": "'escape'",
    "statement_timeout": "'60s'",
    "lock_timeout": "'50s'",
    "idle_in_transaction_session_timeout": "'50s'",
    "transaction_timeout": "'60s'",
}


def set_all(database: Database) -> None:
    with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
        for name, value in SETTINGS.items():
            superuser.execute(
                sql.SQL("alter database {} set {} to {}").format(
                    sql.Identifier(database.name), sql.Identifier(name), sql.SQL(value)
                )
            )


async def test_every_command_works(blank_database: Database, emulator: Emulator) -> None:
    set_all(blank_database)
    dsn = blank_database.dsn
    for arguments in (
        ["migrate"],
        ["migrate", "--status"],
        ["migrate", "--status", "--json"],
        ["stats"],
        ["stats", "--json"],
    ):
        done = await invoke(dsn, *arguments)
        assert done.exit_code == 0, (arguments, done.stderr)
    async with serving(settings_for(dsn, emulator)):
        assert (await examine(dsn, emulator)).at(Level.FAULT, Level.WARNING) == []
        done = await invoke(
            dsn,
            "send",
            "--token",
            "t",
            "--title",
            "x",
            "--delay",
            "0.1",
            "--expires-in",
            "600",
            "--wait",
            "60",
        )
        assert done.exit_code == 0, done.stderr
    blank_database.wait_left()
    down = await invoke(dsn, "migrate", "--down", "0", "--discard-data")
    assert down.exit_code == 0, down.stderr


@pytest.mark.every_postgres
async def test_statements_are_not_compiled(database: Database) -> None:
    """Claims beside rows that cannot be written would take three times as long."""
    with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
        superuser.execute(sql.SQL("alter database {} set jit to on").format(sql.Identifier(database.name)))
    async with ServicePool(Address(database.dsn), prepares=True) as pool, pool.connection() as connection:
        assert await fetch_value(connection, "show jit") == "off"
    with session.connect(database.dsn) as migrating:
        assert migrating.execute("show jit").fetchone() == ("off",)


@pytest.mark.parametrize(("hours", "gone"), [(9, 0), (11, 0), (13, 1)])
async def test_an_age_is_an_age(database: Database, hours: int, gone: int) -> None:
    """India's IST is Israel's to Postgres: three and a half hours less, and whatever is a day may be a month."""
    set_all(database)
    async with rows_of(database.dsn + "&options=-csearch_path%3Dpublic") as rows:
        push = await rows.add(device_token="t", title="t", status="sent", next_attempt_at=None)
        await rows.query(
            "update push_notifications set updated_at = now() - make_interval(hours => %(hours)s) "
            "where id = %(id)s",
            hours=hours,
            id=push,
        )
        done = await invoke(database.dsn, "purge", "--older-than", "12h", "--json")
        assert orjson.loads(done.stdout)["pushes"] == gone
