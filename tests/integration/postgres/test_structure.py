"""What somebody drops, disables or replaces of what the migrations have made: told, and mended or refused."""

from __future__ import annotations

from typing import LiteralString

import psycopg
import pytest

from listener.emulator import Emulator
from listener.registration import NotMigrated
from listener.schema import migrate
from listener.schema.migrate import MigrationError, structure
from tests.support.catalog import describe
from tests.support.cli import invoke
from tests.support.doctor import examine
from tests.support.postgres import Database
from tests.support.service import Rows, serving, settings_for, until

MENDED: dict[str, tuple[LiteralString, str]] = {
    "a trigger that is disabled": (
        "alter table push_notifications disable trigger push_listener_ring_insert",
        "the trigger push_listener_ring_insert on public.push_notifications is disabled",
    ),
    "a trigger that is dropped": (
        "drop trigger push_listener_count_changed on push_notifications",
        "the trigger push_listener_count_changed on public.push_notifications is missing",
    ),
    "an index that is missing": (
        "drop index push_notifications_due",
        "the index public.push_notifications_due is missing",
    ),
    "a function that is replaced": (
        "create or replace function mark_push_sent(p_push_id uuid) returns text language sql as 'select null'",
        "the function public.mark_push_sent is replaced",
    ),
    "a function that is dropped": (
        "drop function push_listener.lost_counts()",
        "the function push_listener.lost_counts is missing",
    ),
    "a view that is dropped": (
        "drop view push_listener.ended",
        "the view push_listener.ended is missing",
    ),
}

# As a migration of the application does it that was written before push-listener came.
MADE_ANEW: LiteralString = """
drop table push_notifications cascade;
create table push_notifications (id uuid primary key default gen_random_uuid(), user_id uuid, title text not null,
  body text, image text, status text not null default 'pending' check (status in ('pending', 'sent', 'failed')),
  created_at timestamptz default now());
insert into push_notifications (title, image) values ('waits', 'of the application');
"""


def execute(database: Database, statement: LiteralString) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(statement)


def lines(database: Database) -> list[str]:
    return structure.lines(migrate.damages(database.dsn))


def test_what_is_expected_is_what_there_is(database: Database) -> None:
    """The files are read for it, and every object that they make is found in them."""
    assert lines(database) == []
    expected = {damage.name.partition(" on ")[0] for damage in structure.find([], migrate.load())}
    with psycopg.connect(database.dsn) as connection:
        facts = connection.execute(structure.FACTS).fetchall()
    made = {
        name.rpartition(".")[2] if kind == "trigger" else name
        for kind, name, _ in facts
        if kind in ("relation", "trigger", "function") and not name.endswith("_pkey")
    }
    missing = {"push_listener.migrations", "push_listener.functions"}
    assert made - expected - missing <= {"push_listener_begin_as_new"}


async def test_what_can_be_made_again_is_told_and_made_again(database: Database, emulator: Emulator) -> None:
    before = describe(database.dsn, "public", "push_listener")
    for change, finding in MENDED.values():
        told = set(lines(database))
        execute(database, change)
        assert set(lines(database)) - told == {finding}
    findings = [finding for _, finding in MENDED.values()]
    assert sorted(lines(database)) == sorted(findings)
    status = await invoke(database.dsn, "migrate", "--status")
    checked = await examine(database.dsn, emulator)
    done = await invoke(database.dsn, "migrate")
    assert (checked.exit_code, done.exit_code) == (1, 0)
    for finding in findings:
        assert finding in status.stderr
        assert finding in str(checked)
        assert f"note: {finding}, and has been made again" in done.stderr
    assert "Remedy: run push-listener migrate" in status.stderr
    assert describe(database.dsn, "public", "push_listener") == before
    assert lines(database) == []


async def test_an_invalid_index_is_built_again(database: Database) -> None:
    before = describe(database.dsn, "public", "push_listener")
    with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
        superuser.execute(
            "update pg_index set indisvalid = false where indexrelid = 'push_notifications_due'::regclass"
        )
    assert lines(database) == ["the index public.push_notifications_due is invalid"]
    migrate.apply(database.dsn)
    assert describe(database.dsn, "public", "push_listener") == before


async def test_run_tells_what_it_can_do_without(database: Database, emulator: Emulator) -> None:
    execute(database, "alter table push_notifications disable trigger push_listener_ring_insert")
    async with serving(settings_for(database.dsn, emulator)) as service:
        assert service.obstacles() == ["triggers of push-listener are missing or changed in the database"]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (MADE_ANEW, "the table public.push_notifications has no column device_token, topic,"),
        ("drop table push_delivery_logs", "the table public.push_delivery_logs is missing"),
    ],
    ids=["made anew", "a table"],
)
async def test_what_cannot_be_made_again_is_refused_with_the_remedy_which_helps(
    database: Database, rows: Rows, emulator: Emulator, change: LiteralString, finding: str
) -> None:
    await rows.query("drop trigger test_tell on push_notifications")
    await rows.query(
        "insert into push_devices (token, user_id, platform) values ('t', gen_random_uuid(), 'ios')"
    )
    execute(database, change)
    with pytest.raises(NotMigrated) as of_run:
        async with serving(settings_for(database.dsn, emulator)):
            pass
    with pytest.raises(MigrationError) as refusal:
        migrate.apply(database.dsn)
    status = await invoke(database.dsn, "migrate", "--status")
    checked = await examine(database.dsn, emulator)
    for said in (str(of_run.value), str(refusal.value), status.stderr, str(checked)):
        assert finding in said
        assert "migrate --down 0 --keep-tables" in said
    assert (status.exit_code, checked.exit_code) == (0, 1)
    if change is not MADE_ANEW:  # which needs most of the remedy
        return

    kept = [tuple(row.items()) for row in await rows.query("select title from push_notifications")]
    database.wait_left()
    down = await invoke(database.dsn, "migrate", "--down", "0", "--keep-tables")
    assert down.exit_code == 0, down.stderr
    assert describe(database.dsn, "push_listener") == []
    assert len(await rows.query("select token from push_devices")) == 1
    assert [tuple(row.items()) for row in await rows.query("select title from push_notifications")] == kept
    migrate.apply(database.dsn)
    assert lines(database) == []
    async with serving(settings_for(database.dsn, emulator)):
        push = await rows.add(device_token="t", title="t")
        await rows.query("update push_notifications set status = status")
    assert (await rows.get(push))["status"] in ("sent", "pending")


async def test_what_the_application_made_anew_is_left_to_it(database: Database, rows: Rows) -> None:
    await rows.query("drop trigger test_tell on push_notifications")
    execute(database, MADE_ANEW)
    before = [line for line in describe(database.dsn) if "push_notifications" in line.split(" | ")[1]]
    migrate.rollback(database.dsn, 0)
    after = [line for line in describe(database.dsn) if "push_notifications" in line.split(" | ")[1]]
    assert after == before
    assert await rows.query("select title, image from push_notifications") == [
        {"title": "waits", "image": "of the application"}
    ]


async def test_a_running_worker_says_what_is_missing(database: Database, emulator: Emulator) -> None:
    async with serving(settings_for(database.dsn, emulator)) as service:
        execute(database, "alter table push_notifications rename lost_claims to gone; notify push_listener")
        await until(lambda: "columns of push-listener are missing in the database" in service.obstacles())
