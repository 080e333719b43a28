"""``push-listener migrate``: apply, look, roll back."""

from __future__ import annotations

import orjson
import psycopg

from listener.schema import migrate
from tests.support.cli import invoke
from tests.support.postgres import Database
from tests.support.service import Rows


async def test_migrate_and_roll_back(blank_database: Database) -> None:
    dsn, known = blank_database.dsn, migrate.load()

    before = await invoke(dsn, "migrate", "--status", "--json")
    assert [each["applied_at"] for each in orjson.loads(before.stdout)["migrations"]] == [None] * len(known)

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
    assert (
        await invoke(dsn, "migrate", "--dry-run")
    ).stdout == "-- nothing to do: the database is up to date\n"
    after = orjson.loads((await invoke(dsn, "migrate", "--status", "--json")).stdout)
    assert all(each["applied_at"] and not each["changed"] for each in after["migrations"])
    assert {each["standing"] for each in after["functions"]} == {"current"}
    table = await invoke(dsn, "migrate", "--status")
    assert table.exit_code == 0
    headings = table.stdout.splitlines()[1].strip("┃").split("┃")
    assert [heading.strip() for heading in headings] == ["version", "name", "applied at", "file"]
    assert all(m.name in table.stdout for m in known)

    back = await invoke(dsn, "migrate", "--down", "0")
    assert back.exit_code == 0
    assert back.stdout.splitlines()[-1] == f"{len(known)} migrations rolled back"
    with psycopg.connect(dsn) as conn:
        assert conn.execute("select to_regclass('push_notifications')").fetchone() == (None,)


async def test_what_several_migrations_notice_is_said_once(bare_database: Database) -> None:
    """There is no auth.uid() in a database that is not Supabase's."""
    notes = (await invoke(bare_database.dsn, "migrate")).stderr.splitlines()
    assert [line[:22] for line in notes].count("note: no user can read") == 1
    assert len(notes) == len(set(notes))


async def test_a_dry_run_tells_of_what_would_be_mended(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute("grant insert on push_notifications to anon")
    planned = await invoke(database.dsn, "migrate", "--dry-run")
    assert (planned.exit_code, planned.stdout) == (0, "")
    assert "note: privileges have changed: " in planned.stderr


async def test_a_rollback_keeps_rows_unless_told_to_discard_them(database: Database, rows: Rows) -> None:
    await rows.query("drop trigger test_tell on push_notifications")
    await rows.add(device_token="t", title="t")
    done = await invoke(database.dsn, "migrate", "--down", "0")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert "push_notifications" in done.stderr
    assert len(await rows.all()) == 1
    assert (await invoke(database.dsn, "migrate", "--down", "0", "--discard-data")).exit_code == 0


async def test_functions_that_differ_are_shown_and_replaced(database: Database) -> None:
    dsn = database.dsn
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "update push_listener.functions set checksum = 'another', revision = case name "
            "when 'public.cancel_push' then 1 else 1000 end "
            "where name in ('public.cancel_push', 'public.enqueue_push')"
        )
    shown = orjson.loads((await invoke(dsn, "migrate", "--status", "--json")).stdout)["functions"]
    assert {each["name"]: each["standing"] for each in shown if each["standing"] != "current"} == {
        "public.cancel_push": "changed",
        "public.enqueue_push": "newer",
    }
    status = await invoke(dsn, "migrate", "--status")
    assert (
        "note: public.cancel_push (revision 1) has changed. push-listener migrate replaces it"
        in status.stderr
    )
    assert "note: the database has revision 1000 of public.enqueue_push, from a newer" in status.stderr

    planned = (await invoke(dsn, "migrate", "--dry-run")).stdout
    assert planned.startswith("-- function public.cancel_push\n-- revision 1\n")
    assert planned.endswith("-- end of function public.cancel_push\n")

    done = await invoke(dsn, "migrate")
    assert done.stdout.splitlines() == ["replaced public.cancel_push (revision 1)", "1 functions replaced"]
    assert "public.enqueue_push in the database has revision 1000" in done.stderr
