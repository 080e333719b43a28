"""``push-listener migrate``: apply, look, roll back."""

from __future__ import annotations

import orjson
import psycopg
import pytest

from listener.schema import migrate
from tests.support.cli import invoke
from tests.support.postgres import Database
from tests.support.service import Rows

pytestmark = pytest.mark.newest_postgres


async def test_migrate_and_roll_back(blank_database: Database) -> None:
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


async def test_a_rollback_keeps_rows_unless_told_to_discard_them(database: Database, rows: Rows) -> None:
    await rows.query("drop trigger test_tell on push_notifications")
    await rows.add(device_token="t", title="t")
    done = await invoke(database.dsn, "migrate", "--down", "0")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert "push_notifications" in done.stderr
    assert len(await rows.all()) == 1
    assert (await invoke(database.dsn, "migrate", "--down", "0", "--discard-data")).exit_code == 0
