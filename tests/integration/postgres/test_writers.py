"""What others write into the tables, as bulk inserts, imports and functions of an application do."""

from __future__ import annotations

import itertools
from typing import LiteralString
from uuid import uuid4

import psycopg
import pytest
from prometheus_client import generate_latest

from listener import client
from listener.emulator import Emulator
from listener.postgres import overview
from listener.postgres.connect import Address, ServicePool
from listener.schema import migrate
from listener.service import Service
from tests.support.postgres import Database
from tests.support.service import Rows, naming, serving, settings_for

FILLED = ("id", "status", "next_attempt_at", "priority", "retry_count", "delivery_attempts", "lost_claims",
          "created_at", "updated_at")  # fmt: skip


async def test_an_explicit_null_means_the_default(rows: Rows) -> None:
    """PostgREST writes NULL for a key that only other rows of a bulk insert have."""
    await rows.query("drop trigger test_tell on push_notifications")
    for column in FILLED:
        with naming(column):
            await rows.add(device_token="t", title="t", **{column: None})
            (row,) = (await rows.all()).values()
            assert all(row[name] is not None for name in FILLED)
            assert (row["status"], row["priority"], row["retry_count"]) == ("pending", "normal", 0)
            due = await rows.query(
                "delete from push_notifications where next_attempt_at <= now() returning id"
            )
            assert len(due) == 1


async def test_rows_with_nulls_are_sent(rows: Rows, service: Service, emulator: Emulator) -> None:
    inserted = await rows.add(device_token="a", title="t", next_attempt_at=None)
    updated = await rows.add(device_token="b", title="t", next_attempt_at="infinity")
    await rows.query("update push_notifications set next_attempt_at = null where id = %(id)s", id=updated)
    over = await rows.over(inserted, updated)
    assert {row["status"] for row in over.values()} == {"sent"}


async def test_a_later_trigger_of_the_application_may_write_null(rows: Rows) -> None:
    await rows.query("drop trigger test_tell on push_notifications")
    await rows.query(
        "create function zz() returns trigger language plpgsql as "
        "$$ begin new.next_attempt_at := null; return new; end $$"
    )
    await rows.query(
        "create trigger zz before insert on push_notifications for each row execute function zz()"
    )
    push = await rows.add(device_token="t", title="t")
    assert (await rows.get(push))["next_attempt_at"] is not None


async def test_a_status_of_the_applications_own_stays_what_it_is(blank_database: Database) -> None:
    with psycopg.connect(blank_database.dsn, autocommit=True) as connection:
        connection.execute(
            "create table push_notifications (id uuid primary key default gen_random_uuid(), title text, "
            "status text default 'draft')"
        )
        migrate.apply(blank_database.dsn)
        connection.execute(
            "insert into push_notifications (title, status) values ('a', null), ('b', 'draft')"
        )
        found = connection.execute("select status from push_notifications order by title").fetchall()
    assert found == [(None,), ("draft",)]


# --- rows that are not push-listener's -------------------------------------------------------------------


OF_OTHERS: dict[str, LiteralString] = {
    "an import": (
        "insert into push_notifications (device_token, title, status, created_at) values "
        "('t', 't', '{status}', now() - interval '200 days')"
    ),
    "an old function": (
        "insert into push_notifications (device_token, title, next_attempt_at) "
        "values ('t', 't', now() + interval '1 hour'); "
        "update push_notifications set status = '{status}'; "
        "update push_notifications set next_attempt_at = now()"
    ),
}


@pytest.mark.parametrize("status", ["failed", "processing"])
@pytest.mark.parametrize("statement", OF_OTHERS.values(), ids=OF_OTHERS.keys())
async def test_what_no_worker_of_ours_has_claimed_is_left(
    rows: Rows, database: Database, statement: str, status: str
) -> None:
    await rows.query("drop trigger test_tell on push_notifications")
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(statement.replace("{status}", status).encode())
        assert connection.execute("select id from fetch_pending_pushes()").fetchall() == []
    (row,) = (await rows.all()).values()
    assert (row["status"], row["next_attempt_at"]) == (status, None)
    # Its owner may hand it over.
    await rows.query("update push_notifications set status = 'pending'")
    assert len(await rows.query("select id from fetch_pending_pushes()")) == 1


async def test_what_a_worker_of_ours_has_claimed_is_tried_again(rows: Rows) -> None:
    """Also when it comes back with an import of a dump."""
    await rows.query("drop trigger test_tell on push_notifications")
    for claimed in ({"claimed_by": 7}, {"delivery_attempts": 1}):
        for status in ("failed", "processing"):
            await rows.add(device_token="t", title="t", status=status, **claimed)
    assert len(await rows.query("select id from fetch_pending_pushes()")) == 4


# --- times that are no dates -----------------------------------------------------------------------------


async def test_no_metric_becomes_infinite(rows: Rows, database: Database, emulator: Emulator) -> None:
    await rows.query("alter table push_notifications alter created_at drop not null")
    waits: LiteralString = (
        "update push_notifications set status = 'pending', next_attempt_at = %(at)s::timestamptz "
        "where id = %(id)s"
    )
    added = {}
    async with ServicePool(Address(database.dsn), prepares=True) as pool:
        for created, due in itertools.product((None, "-infinity", "infinity"), (None, "-infinity")):
            push = await rows.add(device_token="t", title="t", status="cancelled", next_attempt_at=None)
            added[push] = due
            await rows.query(
                "update push_notifications set created_at = %(at)s::timestamptz where id = %(id)s",
                at=created,
                id=push,
            )
            await rows.query(waits, at=due, id=push)
            depth = (await overview.read(pool)).depth
            assert depth.due == {"high": 0, "normal": 1}, (created, due)
            assert abs(depth.oldest_due["normal"]) < 3600, (created, due)
            await rows.query("update push_notifications set status = 'cancelled', next_attempt_at = null")
    for push, due in added.items():
        await rows.query(waits, at=due, id=push)
    async with serving(settings_for(database.dsn, emulator)) as service:
        assert {row["status"] for row in (await rows.over(*added)).values()} == {"sent"}
        said = generate_latest(service.metrics.registry).decode()
    infinite = [line for line in said.splitlines() if line.endswith("Inf")]
    assert infinite == []


# --- tokens ----------------------------------------------------------------------------------------------


async def test_a_null_among_the_recipients_is_left_out(
    rows: Rows, service: Service, emulator: Emulator
) -> None:
    user = uuid4()
    await rows.device("good", user)
    await rows.query(
        "create or replace view push_recipients with (security_invoker = true) as "
        "select user_id, token, platform from push_devices union all select user_id, null, null from push_devices"
    )
    push = await rows.add(user_id=user, title="t")
    assert (await rows.one_over(push))["status"] == "sent"
    assert [line["device_token"] for line in await rows.logs(push)] == ["good"]


async def test_tokens_with_blanks_around_them_are_said_as_such(
    rows: Rows, service: Service, emulator: Emulator
) -> None:
    user = uuid4()
    await rows.device(" good\n", user)
    for target in ({"user_id": user}, {"device_token": " good\n"}):
        row = await rows.one_over(await rows.add(title="t", **target))
        assert (row["status"], row["error_code"]) == ("dead", "INVALID_TOKEN")
        assert "has blanks or other characters" in row["last_error"]
        assert "good" not in row["last_error"]


# --- columns that an adopted table requires ---------------------------------------------------------------


def test_required_columns_are_filled(blank_database: Database) -> None:
    with psycopg.connect(blank_database.dsn, autocommit=True) as connection:
        connection.execute(
            "create table push_notifications (id uuid primary key default gen_random_uuid(), title text not null, "
            "body text not null, status text, created_at timestamptz not null, updated_at timestamptz not null)"
        )
        migrate.apply(blank_database.dsn)
        client.enqueue(connection, device_token="t", data={"a": "b"})
        client.enqueue(connection, device_token="t", title="t")
        connection.execute("select enqueue_push(p_device_token => 't', p_title => 't')")
        rows = connection.execute("select title, body, updated_at is null from push_notifications").fetchall()
    assert sorted(rows) == [("", "", False), ("t", "", False), ("t", "", False)]
    migrate.rollback(blank_database.dsn, 0)
