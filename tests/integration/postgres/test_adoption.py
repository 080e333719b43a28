"""Existing installations: adopted with all that is in them, worked with, and given back as they were.

The shapes are in tests/support/shapes. The title of a row there says what has to become of it.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from listener import client
from listener.postgres import claiming, queue, settlements, workers
from listener.postgres.queue import Queue
from listener.postgres.settlements import Fate
from listener.push import Decision, LogLine, Settlement, Status
from listener.schema import migrate
from tests.support.adopted import adopted, load
from tests.support.catalog import describe
from tests.support.postgres import Database, Server, Template
from tests.support.service import PATIENCE, workers_of

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "adoption.md"
ADOPTED = {
    "reference with logs": ("reference", "logs"),
    "own words": ("own_words",),
    "no check": ("no_check",),
    "nearly ours": ("nearly_ours",),
    "narrow": ("narrow",),
}
TABLES = ("push_notifications", "push_delivery_logs", "push_devices", "telemetry_logs")

ANN = UUID("a0000000-0000-4000-8000-00000000000a")
OURS = {"pending", "processing", "sent", "delivered", "failed", "dead", "expired", "cancelled"}

Rows = dict[str, dict[str, Any]]


@contextmanager
def connected(
    dsn: str, role: str = "", user: UUID | None = None
) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    """In autocommit; with a role, as PostgREST has it for a request of this user."""
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection:
        if role:
            connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
        if user:
            connection.execute(
                "select set_config('request.jwt.claims', %s, false)", (f'{{"sub": "{user}"}}',)
            )
        yield connection


def decided() -> list[migrate.Migration]:
    """The steps to the one that decides about the rows that wait."""
    return migrate.load()[:11]


def contents(dsn: str, columns: dict[str, list[str]] | None = None) -> dict[str, Rows]:
    """The rows of every table by the text of their key; of the columns named, or of all."""
    found: dict[str, Rows] = {}
    with connected(dsn) as connection:
        for table in TABLES if columns is None else columns:
            if not connection.execute("select where to_regclass(%s) is not null", (table,)).fetchall():
                continue
            names = (
                sql.SQL("*") if columns is None else sql.SQL(", ").join(map(sql.Identifier, columns[table]))
            )
            rows = connection.execute(sql.SQL("select {} from {}").format(names, sql.Identifier(table)))
            found[table] = {str(row.get("id", row.get("token"))): row for row in rows}
    return found


def names_of(dsn: str) -> dict[str, list[str]]:
    """The columns of each of the tables that are there."""
    with connected(dsn) as connection:
        rows = connection.execute(
            "select table_name::text, array_agg(column_name::text order by ordinal_position) as names "
            "from information_schema.columns where table_schema = 'public' and table_name = any (%s) group by 1",
            (list(TABLES),),
        )
        return {row["table_name"]: row["names"] for row in rows}


@asynccontextmanager
async def worker(dsn: str):  # type: ignore[no-untyped-def]
    async with AsyncConnectionPool(
        dsn, min_size=1, max_size=2, open=False, kwargs={"autocommit": True}
    ) as pool:
        incarnation = uuid4()
        worker_id = await workers.register(pool, "test", incarnation=incarnation)
        yield Queue(pool, worker_id=worker_id, lease=60.0, incarnation=incarnation)


def changed(old: dict[str, Any], new: dict[str, Any]) -> set[str]:
    return {name for name in old if old[name] != new[name]}


# --- adopted, worked with, given back --------------------------------------------------------------------


# On the newest Postgres the next two work with what was adopted, and the third gives each shape back.
@pytest.mark.parametrize("shape", ADOPTED)
async def test_adopted_worked_with_and_given_back(oldest_server: Server, shape: str) -> None:
    with oldest_server.database(Template.SUPABASE) as database:
        load(database, *ADOPTED[shape])
        await adopt_work_and_give_back(database.dsn)


async def test_columns_of_the_application_may_have_any_name(
    database: Database, blank_database: Database
) -> None:
    """Those too that the SQL gives to values of its own, but for arguments and variables: they begin with p_ and v_."""
    sources = [step.up for step in migrate.load()]
    for module in (claiming, queue, settlements):
        sources += [text for text in vars(module).values() if isinstance(text, str)]
    sources = [re.sub(r"--[^\n]*", "", text) for text in sources]  # a table has no more than 1,600 columns
    # What may be taken for a column is named more than once, where it is made and where it is meant, and not as a
    # function alone.
    word = r"\b(?!p_|v_)[a-z]\w{0,62}\b"
    counts = [Counter(re.findall(word, text)) for text in sources]
    names = {name for count in counts for name, times in count.items() if times > 1}
    names &= {name for text in sources for name in re.findall(rf"{word}(?!\()", text)}
    system = {"ctid", "xmin", "tableoid"}
    ours = names_of(database.dsn)
    load(blank_database, "reference", "logs")
    with connected(blank_database.dsn) as connection:
        keywords = connection.execute("select word from pg_get_keywords() where catcode = 'R'").fetchall()
        names -= {row["word"] for row in keywords}
        for table, columns in names_of(blank_database.dsn).items():
            free = sorted(names - {*columns, *ours[table]} - system)
            added = sql.SQL(", ").join(sql.SQL("add {} text").format(sql.Identifier(name)) for name in free)
            connection.execute(sql.SQL("alter table {} {}").format(sql.Identifier(table), added))
    await adopt_work_and_give_back(blank_database.dsn)


async def test_a_large_backlog_adopted_worked_with_and_given_back(blank_database: Database) -> None:
    load(blank_database, "backlog")
    await adopt_work_and_give_back(blank_database.dsn, in_batches=True)


async def adopt_work_and_give_back(dsn: str, *, in_batches: bool = False) -> None:
    catalog, columns, before = describe(dsn), names_of(dsn), contents(dsn)

    migrate.apply(dsn)
    check_the_index_of_the_queue(dsn)
    call_what_workers_call(dsn)
    if in_batches:
        check_that_old_rows_were_decided_in_batches(dsn)

    # Row by row: what was over is as it was, what waited is sent or has expired.
    after = contents(dsn, columns)
    assert {table: rows.keys() for table, rows in after.items()} == {
        table: rows.keys() for table, rows in before.items()
    }
    state = contents(dsn, {"push_notifications": ["id", "status", "next_attempt_at", "error_code"]})
    touched = {"updated_at", "retry_count", "next_attempt_at"}
    for key, old in before["push_notifications"].items():
        new, now = after["push_notifications"][key], state["push_notifications"][key]
        if old["title"] == "untouched":
            assert not changed(old, new)
        elif old["title"] == "sent":
            assert changed(old, new) <= touched
            assert now["next_attempt_at"] is not None
        elif old["title"] == "left":
            assert changed(old, new) <= touched
            assert now["next_attempt_at"] is None
        else:
            assert changed(old, new) <= touched | {"status", "error_code"}
            assert (now["status"], now["next_attempt_at"], now["error_code"]) == (
                "expired",
                None,
                "STALE_AT_ADOPTION",
            )
    for table in set(before) - {"push_notifications"}:
        assert after[table] == before[table]

    # The queue hands out those that are to be sent, each once.
    async with worker(dsn) as hands:
        pushes = await hands.claim(1000)
        assert await hands.claim(1000) == []
        wanted = {key for key, row in before["push_notifications"].items() if row["title"] == "sent"}
        assert {str(push.id) for push in pushes} == wanted

        # New ones come in, by our own way, and one of each fate is written down.
        with connected(dsn) as connection:
            added = [
                client.enqueue(connection, user_id=ANN, device_token="t", title="new", body="b", data={})
                for _ in range(5)
            ]
            connection.execute(
                "select enqueue_push(p_topic => 'news', p_title => 'new', p_priority => 'high')"
            )
        claimed = await hands.claim(1000)
        assert {push.id for push in claimed} > set(added)
        assert len(claimed) == 6
        fates = (
            Decision(Status.SENT, message_id="projects/p/messages/1"),
            Decision(
                Status.FAILED, 60.0, True, "UNAVAILABLE", "FCM cannot be reached, and that is a long story"
            ),
            Decision(Status.DEAD, None, True, "UNREGISTERED", "gone"),
            Decision(Status.EXPIRED, None, False, "EXPIRED", "too late"),
            Decision(Status.PENDING, 0.0),
        )
        logs = [LogLine("t" * 200, "sent", {}), LogLine(None, "failed", {}), LogLine("t", "unknown", {})]
        settled = [
            Settlement(push.id, push.attempt, fate, logs)
            for push, fate in zip(claimed[1:], fates, strict=True)
        ]
        assert (
            await hands.settlements.settle(settled) == [Fate.WRITTEN] * 5
        )  # and one stays in the hands of its worker
        await workers_of(hands).sign_off()
    with connected(dsn) as connection:
        connection.execute("select cancel_push(%s)", (added[-1],))
        connection.execute("select record_delivery_receipt(%s, 't', 'opened')", (settled[0].push_id,))
        connection.execute("select register_device('phone', 'ios', %s)", (ANN,))
        answer = connection.execute(
            """select flush_telemetry(array['{"type": "info", "message": "hello"}'::jsonb]) as it"""
        ).fetchone()
        assert answer is not None
        assert answer["it"]["accepted"] == 1

    # The way back: not at the cost of rows that the old shape cannot hold, unless that is said.
    with pytest.raises(migrate.MigrationError, match="--discard-data"):
        migrate.rollback(dsn, 0)
    migrate.rollback(dsn, 0, discard_data=True)

    assert describe(dsn) == catalog
    assert describe(dsn, "push_listener") == []
    back = contents(dsn)
    for table, old_rows in before.items():
        for key, old in old_rows.items():
            difference = changed(old, back[table][key])
            if table != "push_notifications" or old["title"] == "untouched":
                assert not difference
            elif old["title"] == "left":
                assert difference <= touched
            else:  # what waited waits again
                assert back[table][key]["status"] == "pending"
                if old["title"] == "expired":
                    assert difference <= touched | {"error_code", "status"}


def check_the_index_of_the_queue(dsn: str) -> None:
    """A condition on a varchar reads otherwise than one on a text; index and queries have to agree."""
    with connected(dsn) as connection:
        connection.execute("set enable_seqscan = off; set enable_bitmapscan = off")
        plan = connection.execute(
            "explain select id from push_notifications "
            "where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at <= now() "
            "and next_attempt_at is not null and status in ('pending', 'processing', 'failed') "
            "order by next_attempt_at limit 10 for update skip locked"
        ).fetchall()
    assert any("Index Scan using push_notifications_due" in row["QUERY PLAN"] for row in plan), plan
    assert not any("Sort" in row["QUERY PLAN"] for row in plan), plan


def call_what_workers_call(dsn: str) -> None:
    """The functions through which a worker of another make has the rows. Nothing of it stays."""
    with psycopg.connect(dsn) as connection:
        connection.execute("select enqueue_push(p_device_token => 't', p_title => 'new')")
        pushes = connection.execute("select id from fetch_pending_pushes(1000)").fetchall()
        assert pushes
        for push in pushes:
            connection.execute("select mark_push_sent(%s)", push)
        connection.execute("select * from get_push_delivery_stats()")
        connection.rollback()


def check_that_old_rows_were_decided_in_batches(dsn: str) -> None:
    """Each is locked only while its batch is written."""
    with connected(dsn) as connection:
        row = connection.execute(
            "select count(distinct xmin::text) as transactions, count(*) as rows "
            "from push_notifications where error_code = 'STALE_AT_ADOPTION'"
        ).fetchone()
    assert row is not None
    assert row["rows"] == 2_590
    assert row["transactions"] > 2


# Those whose columns and rows are the farthest from ours.
@pytest.mark.parametrize("shape", ["nearly ours", "narrow"])
def test_given_back_at_once_nothing_has_happened(blank_database: Database, shape: str) -> None:
    """No option is needed."""
    dsn = blank_database.dsn
    load(blank_database, *ADOPTED[shape])
    catalog, before = describe(dsn), contents(dsn)
    migrate.apply(dsn)
    migrate.rollback(dsn, 0)
    assert describe(dsn) == catalog
    after = contents(dsn)
    for key, row in before["push_notifications"].items():
        allowed = {"updated_at", "retry_count", "next_attempt_at", "error_code"}
        if row["status"] != "pending":
            allowed.add("status")  # of an earlier version: it waited for its next try, and does so as pending
        assert changed(row, after["push_notifications"][key]) <= (
            set() if row["title"] == "untouched" else allowed
        )


@pytest.fixture
def reference(postgres: Server) -> Iterator[Database]:
    """Adopted."""
    with adopted(postgres, "reference", "logs") as database:
        yield database


def test_statuses_become_the_nearest_that_the_application_knows(reference: Database) -> None:
    """And rows of the log that the old check forbids are kept beside it."""
    dsn = reference.dsn
    push = "00000000-0000-4000-8000-000000000001"
    with connected(dsn) as connection:
        for status in sorted(OURS):
            connection.execute(
                "insert into push_notifications (title, body, status, next_attempt_at) values ('new', %s, %s, null)",
                (status, status),
            )
        connection.execute(
            "insert into push_delivery_logs (push_id, device_token, status) values (%s, null, 'sent')",
            (push,),
        )
    warnings: list[str] = []
    migrate.rollback(dsn, 0, warn=warnings.append)
    rows = [row for row in contents(dsn)["push_notifications"].values() if row["title"] == "new"]
    assert {row["body"]: row["status"] for row in rows} == {
        "pending": "pending",
        "processing": "pending",
        "sent": "sent",
        "delivered": "sent",
        "failed": "failed",
        "dead": "failed",
        "expired": "failed",
        "cancelled": "failed",
    }
    assert warnings == [
        "known_status is back on push_delivery_logs for new rows only: it has rows that would break it"
    ]
    with connected(dsn) as connection:
        kept = connection.execute(
            "select device_token from push_delivery_logs where status = 'sent'"
        ).fetchall()
        assert kept == [{"device_token": ""}]
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(
                "insert into push_delivery_logs (push_id, device_token, status) values (%s, 't', 'sent')",
                (push,),
            )


def test_without_a_check_only_what_is_under_way_is_put_back(postgres: Server) -> None:
    with adopted(postgres, "no_check") as database:
        dsn = database.dsn
        with connected(dsn) as connection:
            connection.execute(
                "insert into push_notifications (title, status, next_attempt_at, delivery_attempts, claimed_by) "
                "values ('dead', 'dead', null, 3, 7), ('held', 'processing', now(), 1, 7), "
                "('retried', 'failed', now(), 1, 7)"
            )
        migrate.rollback(dsn, 0)
        found = contents(dsn)["push_notifications"]
    rows = {row["title"]: row["status"] for row in found.values()}
    assert (rows["dead"], rows["held"], rows["retried"]) == ("dead", "pending", "pending")
    # The application's own worker had that one, and still has.
    assert found["00000000-0000-4000-8000-000000000004"]["status"] == "processing"


def test_rows_that_the_old_shape_cannot_hold_are_named_and_kept(
    postgres: Server, blank_database: Database
) -> None:
    load(blank_database, "own_words")
    with adopted(postgres, "own_words") as database:
        dsn = database.dsn
        with connected(dsn) as connection:
            connection.execute("select enqueue_push(p_topic => 'news', p_title => 'without a user')")
        with pytest.raises(
            migrate.MigrationError, match="1 rows without user_id, which the application requires"
        ):
            migrate.rollback(dsn, 0)
        assert all(state.applied_at is not None for state in migrate.status(dsn))
        migrate.rollback(dsn, 0, discard_data=True)
        assert describe(dsn) == describe(blank_database.dsn)
        assert "without a user" not in {row["title"] for row in contents(dsn)["push_notifications"].values()}


# --- what the application does goes on working -----------------------------------------------------------


def test_the_applications_own_statements_go_on_working(reference: Database) -> None:
    dsn = reference.dsn
    with connected(dsn, "authenticated", ANN) as connection:
        connection.execute(
            "insert into push_notifications (driver_id, user_id, title, body) values (%s, %s, 'mine', 'b')",
            (ANN, ANN),
        )
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(
                "insert into push_notifications (driver_id, title, body) values (gen_random_uuid(), 'x', 'b')"
            )
        seen = connection.execute("select id, driver_id, status from push_notifications").fetchall()
        assert {row["driver_id"] for row in seen} == {ANN}
        assert connection.execute("select count(*) as n from push_delivery_logs").fetchone() == {"n": 1}
        assert connection.execute("select fcm_token from profiles").fetchall() == [
            {"fcm_token": "phone-of-a"}
        ]

    with connected(dsn) as connection:
        connection.execute("insert into trips values (1, %s, %s)", (ANN, ANN))  # its trigger enqueues
        one = connection.execute(
            "select enqueue_push_notification(%s, %s, 'called', 'b') as id", (ANN, ANN)
        ).fetchone()
        assert one is not None
        waiting = connection.execute(
            "select title from push_notifications where next_attempt_at <= now() and body <> 'tried once' "
            "and body <> 'waiting' order by title"
        ).fetchall()
        assert [row["title"] for row in waiting] == ["called", "mine", "trip"]

    # Its own worker settles a row; the queue then has nothing to do with it.
    with connected(dsn, "service_role") as connection:
        connection.execute("select mark_push_sent(%s, 'sent')", (one["id"],))
        row = connection.execute(
            "select status, attempts, updated_at > created_at as touched from push_notifications where id = %s",
            (one["id"],),
        ).fetchone()
        assert row == {"status": "sent", "attempts": 1, "touched": True}
        taken = connection.execute("select id from fetch_pending_pushes(1000)").fetchall()
        assert one["id"] not in {row["id"] for row in taken}
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(
                "update push_notifications set status = 'nonsense' where id = %s", (one["id"],)
            )


def test_a_row_that_becomes_pending_again_is_looked_at_and_rings(postgres: Server) -> None:
    """The application says so in its own way, which knows nothing of next_attempt_at."""
    with adopted(postgres, "own_words") as database:
        dsn = database.dsn
        with connected(dsn) as bell, connected(dsn) as connection:
            bell.execute("listen push_listener")
            connection.execute(
                "update push_notifications set status = 'pending' where status in ('queued', 'read')"
            )
            rings = [ring.channel for ring in bell.notifies(timeout=PATIENCE, stop_after=1)]
            assert rings == ["push_listener"]
            due = connection.execute(
                "select count(*) as n from push_notifications where status = 'pending' and next_attempt_at <= now()"
            ).fetchone()
            assert due == {"n": 5}
            # An insert rings too.
            connection.execute(
                "insert into push_notifications (user_id, title, status) values (%s, 'new', 'pending')",
                (ANN,),
            )
            assert [ring.channel for ring in bell.notifies(timeout=PATIENCE, stop_after=1)] == [
                "push_listener"
            ]


async def test_counters_that_are_null_count_from_nothing(postgres: Server) -> None:
    with adopted(postgres, "nearly_ours") as database:
        dsn = database.dsn
        with connected(dsn) as connection:
            connection.execute("update push_notifications set status = 'sent', next_attempt_at = null")
            connection.execute("alter table push_notifications alter column delivery_attempts drop not null")
            connection.execute("insert into push_notifications (device_token, title) values ('t', 'null')")
            connection.execute(
                "update push_notifications set retry_count = null, delivery_attempts = null where title = 'null'"
            )
        async with worker(dsn) as hands:
            (push,) = await hands.claim(10)
            assert (push.attempt, push.retry_count) == (1, 0)
            again = Decision(Status.FAILED, 0.0, True, "UNAVAILABLE", "busy")
            assert await hands.settlements.settle([Settlement(push.id, push.attempt, again)]) == [
                Fate.WRITTEN
            ]
            (push,) = await hands.claim(10)
            assert (push.attempt, push.retry_count) == (2, 1)


async def test_tokens_in_profiles_as_the_documentation_has_it(reference: Database) -> None:
    dsn = reference.dsn
    examples = re.findall(r"```sql\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    assert len(examples) == 2
    with connected(dsn) as connection:
        connection.execute("update push_notifications set status = 'sent'")
        for example in examples:
            connection.execute(example.encode())
        connection.execute(
            "insert into push_notifications (driver_id, title, body) values (%s, 'for the driver', 'b')",
            (ANN,),
        )
    with listening_role(reference) as role:
        async with worker(reference.dsn_as(role)) as hands:
            (push,) = await hands.claim(10)
            assert push.recipients == [("phone-of-a", None)]
            gone = Settlement(
                push.id,
                push.attempt,
                Decision(Status.DEAD, None, True, "UNREGISTERED", "gone"),
                [],
                [("phone-of-a", "UNREGISTERED")],
            )
            assert await hands.settlements.settle([gone]) == [Fate.WRITTEN]
    with connected(dsn) as connection:
        assert connection.execute("select from profiles where fcm_token is not null").fetchall() == []


@contextmanager
def listening_role(database: Database) -> Iterator[str]:
    """A role that may log in and do what push_listener may."""
    name = f"listener_{uuid4().hex[:8]}"
    role = sql.Identifier(name)
    with connected(database.superuser_dsn) as connection:
        connection.execute(sql.SQL("create role {} login in role push_listener").format(role))
        try:
            yield name
        finally:
            connection.execute(sql.SQL("drop role {}").format(role))


# --- rows that waited ------------------------------------------------------------------------------------


def test_what_is_too_old_is_said(blank_database: Database) -> None:
    dsn = blank_database.dsn
    load(blank_database, "reference")
    catalog = describe(dsn, "public", "push_listener")
    for patience, sent, expired in (
        (timedelta(days=1), 2, 3),
        (timedelta(days=7), 3, 2),
        (timedelta(minutes=30), 1, 4),
        (None, 5, 0),
    ):
        foretold = migrate.foresee(dsn, expire_older_than=patience)
        assert len(foretold) == 3
        assert "--share-new-columns" in foretold[0]
        assert f"rows that wait: {sent} of them will be sent, and {expired} will expire" in foretold[1]
        # The tokens are in profiles.
        assert foretold[2].startswith(
            f"{sent} of the rows that will be sent name no device, topic or condition"
        )
    assert describe(dsn, "public", "push_listener") == catalog


def test_what_is_too_old_expires_as_it_was_said(blank_database: Database) -> None:
    dsn, patience = blank_database.dsn, timedelta(days=7)
    load(blank_database, "reference")
    foretold = migrate.foresee(dsn, expire_older_than=patience)
    warnings: list[str] = []
    migrate.apply(dsn, expire_older_than=patience, warn=warnings.append)
    assert warnings[: len(foretold)] == foretold
    with connected(dsn) as connection:
        row = connection.execute(
            "select count(*) filter (where status = 'expired') as expired, "
            "count(*) filter (where status = 'pending' and next_attempt_at <= now()) as sent, count(*) as all "
            "from push_notifications"
        ).fetchone()
        assert row == {"expired": 2, "sent": 3, "all": 8}
    assert migrate.foresee(dsn) == []


def test_rows_whose_users_have_devices_are_not_warned_of(blank_database: Database) -> None:
    with connected(blank_database.dsn) as connection:
        connection.execute(
            "create table push_notifications (id uuid primary key default gen_random_uuid(), user_id uuid, "
            "topic text, title text, status text default 'pending', created_at timestamptz default now());"
            "create table push_devices (token text primary key, user_id uuid, platform text);"
            "insert into push_devices values ('t', 'a0000000-0000-4000-8000-00000000000a', 'ios');"
            "insert into push_notifications (user_id, topic) values "
            "('a0000000-0000-4000-8000-00000000000a', null), (null, 'news'),"
            "('b0000000-0000-4000-8000-00000000000b', null), (null, null)"
        )
    said = [line for line in migrate.foresee(blank_database.dsn) if "NO_RECIPIENTS" in line]
    assert [line.partition(" of the rows")[0] for line in said] == ["2"]


def test_a_queue_without_dates_is_not_poured_out(blank_database: Database) -> None:
    dsn = blank_database.dsn
    with connected(dsn) as connection:
        connection.execute(
            "create table push_notifications (id uuid primary key, status text);"
            "insert into push_notifications select gen_random_uuid(), 'pending' from generate_series(1, 10)"
        )
    assert "10 will expire (older than 1 day: 0; of unknown age: 10;" in migrate.foresee(dsn)[-1]
    migrate.apply(dsn, decided())
    with connected(dsn) as connection:
        connection.execute("insert into push_notifications (device_token, title) values ('t', 'new')")
        rows = connection.execute(
            "select status, count(*) as n from push_notifications group by 1 order by 1"
        ).fetchall()
    assert rows == [{"status": "expired", "n": 10}, {"status": "pending", "n": 1}]


REFUSING = {
    "takes it back": (
        "if current_user <> 'service_role' then new.status := old.status; end if; return new;",
        "status 'pending' becomes 'pending' instead of 'processing'",
    ),
    "swallows it": ("return null;", "status 'pending' becomes 'pending' instead of 'processing'"),
    "renames it": (
        "if new.status = 'dead' then new.status := 'failed'; end if; return new;",
        "status 'failed' becomes 'failed' instead of 'dead'",
    ),
    "refuses it": (
        "if new.status = 'processing' then raise 'unknown status'; end if; return new;",
        "status 'pending' cannot become 'processing': unknown status",
    ),
    "forgets who claimed": (
        "new.claimed_by := null; return new;",
        "a trigger takes back what is written in claimed_by",
    ),
}
WAITS = (
    "create table push_notifications (id uuid primary key default gen_random_uuid(), title text,"
    " status text, created_at timestamptz);"
    "insert into push_notifications (status, created_at) values ('pending', now() - interval '1 month');"
)


def test_a_trigger_that_refuses_a_status_is_named_before_anything_changes(blank_database: Database) -> None:
    dsn = blank_database.dsn
    with connected(dsn) as connection:
        connection.execute(WAITS.encode())
    faults = []
    for name, (body, obstacle) in REFUSING.items():
        with connected(dsn) as connection:
            connection.execute(
                f"create or replace function guard() returns trigger language plpgsql as $$ begin {body} end $$;"
                "create trigger guard before update on push_notifications "
                "for each row execute function guard()".encode()
            )
        before, rows = describe(dsn), contents(dsn)
        with pytest.raises(
            migrate.MigrationError, match="does not take what push-listener writes"
        ) as refusal:
            migrate.apply(dsn)
        if obstacle not in str(refusal.value):
            faults.append(f"{name}: {refusal.value}")
        if (describe(dsn), contents(dsn)) != (before, rows):
            faults.append(f"{name}: something has changed")
        migrate.rollback(dsn, 0)
        with connected(dsn) as connection:
            connection.execute("drop trigger guard on push_notifications")
    assert not faults, "\n".join(faults)


def test_a_publication_without_a_replica_identity_is_named_before_anything_changes(
    blank_database: Database,
) -> None:
    dsn = blank_database.dsn
    with connected(blank_database.superuser_dsn) as connection:
        connection.execute(f"set role postgres; {WAITS}".encode())
        connection.execute("reset role; alter table push_notifications replica identity nothing")
        connection.execute("create publication p for table push_notifications")
    before = describe(dsn)
    with pytest.raises(migrate.MigrationError, match="replica identity default, or full"):
        migrate.apply(dsn)
    assert describe(dsn) == before
    migrate.rollback(dsn, 0)


def test_the_way_back_works_where_a_publication_refuses_updates(
    reference: Database, blank_database: Database
) -> None:
    load(blank_database, "reference", "logs")
    with connected(reference.superuser_dsn) as connection:
        connection.execute("update push_notifications set status = 'sent', next_attempt_at = null")
        connection.execute("alter table push_notifications replica identity nothing")
        connection.execute("create publication p for table push_notifications")
    migrate.rollback(reference.dsn, 0)
    with connected(reference.superuser_dsn) as connection:
        connection.execute("alter table push_notifications replica identity default")
    assert describe(reference.dsn) == describe(blank_database.dsn)


def test_a_trigger_that_came_later_is_named_by_the_step_that_decides(blank_database: Database) -> None:
    dsn = blank_database.dsn
    with connected(dsn) as connection:
        connection.execute(WAITS.encode())
    migrate.apply(dsn, migrate.load()[:10])
    with connected(dsn) as connection:
        connection.execute(
            "create function guard() returns trigger language plpgsql as $$ begin"
            "  new.status := old.status; return new; end $$;"
            "create trigger guard before update on push_notifications for each row execute function guard()"
        )
    with pytest.raises(migrate.MigrationError, match="a trigger on push_notifications takes back"):
        migrate.apply(dsn)
    migrate.rollback(dsn, 0)


def test_a_trigger_that_gives_new_rows_a_status_of_its_own_is_named(database: Database) -> None:
    dsn = database.dsn
    with connected(dsn) as connection:
        connection.execute(
            "create function own() returns trigger language plpgsql as $$ begin"
            "  new.status := 'cancelled'; return new; end $$;"
            "create trigger own before insert on push_notifications for each row execute function own()"
        )
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="would never be sent"):
            connection.execute("select enqueue_push(p_device_token => 't', p_title => 'x')")
    assert not contents(dsn)["push_notifications"]


@pytest.fixture
def undecided(postgres: Server) -> Iterator[Database]:
    """Adopted by the steps before the one that decides about the rows that wait."""
    with adopted(postgres, "reference", steps=10) as database:
        yield database


def test_rows_that_come_in_on_the_way_are_sent(undecided: Database) -> None:
    """Between the step that adds the columns and the one that decides about old rows, days later even."""
    dsn = undecided.dsn
    with connected(dsn) as connection:
        connection.execute("insert into push_notifications (title, body) values ('new', 'b')")
        connection.execute("update push_listener.migrations set applied_at = now() - interval '3 days'")
        connection.execute(
            "update push_notifications set created_at = now() - interval '2 days', "
            "next_attempt_at = now() - interval '2 days' where title = 'new'"
        )
    migrate.apply(dsn, decided())
    rows = contents(dsn)["push_notifications"].values()
    assert [row["status"] for row in rows if row["title"] == "new"] == ["pending"]


# --- what stands in the way ------------------------------------------------------------------------------


def way_out(function: str) -> str:
    """What is advised where the application has a function of push-listener's name."""
    return (
        f"drop function {function}; or, to keep it, first revoke execute on function {function} from public, "
        f"and then alter function {function} rename to ..."
    )


REFUSED = {
    "refused_types": [
        "push_devices has no column token: add it, or rename the table",
        "push_notifications.created_at is timestamp without time zone, and has to be timestamp with time zone: "
        "set timezone = 'UTC', if that is what it holds, and alter table public.push_notifications "
        "alter column created_at type timestamptz, which rewrites nothing then",
        "push_notifications.data is text, and has to be jsonb or json: rename it, or the table",
        "push_notifications.delivery_attempts is smallint, and has to be integer or bigint: alter table "
        "public.push_notifications alter column delivery_attempts type integer, which rewrites the table",
        "push_notifications.id has no primary key or unique constraint for it alone: alter table "
        "public.push_notifications add unique (id)",
        "push_notifications.id is bigint, and has to be uuid: rename it, or the table",
        "push_notifications.retry_count is generated, and has to be written: alter table "
        "public.push_notifications alter column retry_count drop expression",
        "push_notifications.status is public.push_status, and has to be text or character varying: alter table "
        "public.push_notifications alter column status drop default, alter column status type text using "
        "status::text, alter column status set default 'pending'",
    ],
    "refused_relations": [
        "push_delivery_logs is a partitioned table, and has to be an ordinary table: rename it",
        "push_notifications is a view, and has to be an ordinary table: rename it",
        "push_recipients exists, without the columns user_id uuid, token text and platform text that it has "
        "to have: rename it, or give it those",
        "telemetry_logs has rewrite rules, and push-listener cannot work with it so",
        "telemetry_logs.id is NOT NULL without a default, and push-listener, which knows nothing of it, adds "
        "rows: alter table public.telemetry_logs alter column id add generated by default as identity",
    ],
    "refused_names": [
        "there is a function public.cancel_push(uuid), and push-listener's own has that name and those arguments: "
        + way_out("public.cancel_push(uuid)"),
        "there is a function public.fetch_pending_pushes(), and PostgREST could not tell a call of it from one of "
        "push-listener's fetch_pending_pushes(p_limit): " + way_out("public.fetch_pending_pushes()"),
        "there is a function public.mark_push_failed(uuid), and PostgREST could not tell a call of it from one of "
        "push-listener's mark_push_failed(p_push_id, p_error): " + way_out("public.mark_push_failed(uuid)"),
        "there is a function public.mark_push_sent(uuid,text), and PostgREST could not tell a call of it from one "
        "of push-listener's mark_push_sent(p_push_id): " + way_out("public.mark_push_sent(uuid,text)"),
        "there is a table push_devices_live, named as an index that push-listener makes: rename it",
        "there is a trigger push_listener_mine on push_notifications, named as push-listener names its own: "
        "alter trigger push_listener_mine on public.push_notifications rename to ...",
        "there is an index push_notifications_due, named as an index that push-listener makes: rename it",
    ],
    "refused_constraints": [
        "push_delivery_logs.id is NOT NULL without a default, and push-listener, which knows nothing of it, "
        "adds rows: alter table public.push_delivery_logs alter column id add generated by default as identity",
        "push_delivery_logs.provider is NOT NULL without a default, and push-listener, which knows nothing of "
        "it, adds rows: alter table public.push_delivery_logs alter column provider set default ..., "
        "or drop not null",
        "push_notifications.last_error is character varying(80), too short for what push-listener writes, and "
        "cannot be widened while there is rule _RETURN on view public.errors: drop that, alter table "
        "public.push_notifications alter column last_error type text, and create it again",
        "push_notifications.status is character varying(7), too short for what push-listener writes, and "
        "cannot be widened while there is policy own on table public.push_notifications, the constraint sent_or_not: "
        "drop that, alter table public.push_notifications alter column status type text, and create it again",
        "the unique index public.push_delivery_logs_push_id_device_token_key lets a push have only one row for each "
        "push_id, device_token, and there is one for each attempt and each receipt: drop it",
        "the unique index public.push_delivery_logs_push_id_key lets a push have only one row for each push_id, and "
        "there is one for each attempt and each receipt: drop it",
        "the constraint push_notifications_retry_count_check on push_notifications forbids what push-listener "
        "writes (failed, dead): drop it, or let that through; it is CHECK ((retry_count <= 3))",
        "the constraint sent_or_not on push_notifications forbids what push-listener writes (deliver): drop "
        "it, or let that through; it is CHECK ((((status)::text = 'sent'::text) = (sent_at IS NOT NULL)))",
        "push_notifications.idempotency_key has 1 values that stand in more than one row: leave each in one, "
        "and set it to NULL in the others",
    ],
}


@pytest.mark.parametrize("shape", REFUSED)
def test_what_cannot_be_adopted_is_named_at_once_and_left_alone(blank_database: Database, shape: str) -> None:
    dsn = blank_database.dsn
    load(blank_database, shape)
    before = describe(dsn, "public", "push_listener")
    for attempt in (migrate.apply, migrate.foresee):
        with pytest.raises(migrate.MigrationError) as refusal:
            attempt(dsn)
        first, *obstacles, last = str(refusal.value).splitlines()
        assert first == "0001_preflight: this database cannot be adopted as it is"
        assert [line.removeprefix("- ") for line in obstacles] == REFUSED[shape]
        assert last == "Nothing has been changed. Mend what is named, then run this again."
        assert describe(dsn, "public", "push_listener") == before


def test_the_remedies_help(blank_database: Database) -> None:
    """What the refusal of a table says is to be done, done, lets it be adopted."""
    dsn = blank_database.dsn
    with connected(dsn) as connection:
        connection.execute(
            "create type push_status as enum ('pending', 'sent');"
            "create table push_notifications (id uuid default gen_random_uuid(), "
            "status push_status not null default 'pending', created_at timestamp default now());"
            "insert into push_notifications (status) values ('sent'), ('pending')"
        )
    with pytest.raises(migrate.MigrationError) as refusal:
        migrate.apply(dsn)
    with connected(dsn) as connection:
        for line in str(refusal.value).splitlines()[1:-1]:
            if zone := re.search(r"set timezone = 'UTC'", line):
                connection.execute(zone[0].encode())
            remedy = re.search(r"alter table .*?(?=, which|$)", line)
            assert remedy is not None
            connection.execute(remedy[0].encode())
    migrate.apply(dsn)
    assert {row["status"] for row in contents(dsn)["push_notifications"].values()} == {"sent", "pending"}


def test_rows_without_a_status_are_nobodys_to_send(blank_database: Database) -> None:
    dsn = blank_database.dsn
    with connected(dsn) as connection:
        connection.execute("create table push_notifications (id uuid primary key, title text)")
        migrate.foresee(dsn)  # without a row there is nothing to doubt
        connection.execute("insert into push_notifications values (gen_random_uuid(), 'which was it?')")
    with pytest.raises(migrate.MigrationError, match="no column status that says which of them wait"):
        migrate.apply(dsn)


def test_tables_of_another_role_are_refused_by_its_name(blank_database: Database) -> None:
    dsn, owner = blank_database.dsn, f"owner_{uuid4().hex[:8]}"
    load(blank_database, "reference")
    with connected(blank_database.superuser_dsn) as connection:
        connection.execute(
            sql.SQL("create role {0}; alter table push_notifications owner to {0}").format(
                sql.Identifier(owner)
            )
        )
    try:
        with pytest.raises(
            migrate.MigrationError,
            match=f"push_notifications belongs to {owner}, of which postgres is not a member: run this as {owner}",
        ):
            migrate.apply(dsn)
    finally:
        with connected(blank_database.superuser_dsn) as connection:
            connection.execute(
                sql.SQL("alter table push_notifications owner to postgres; drop role {}").format(
                    sql.Identifier(owner)
                )
            )


def test_what_deserves_a_look_is_pointed_out(blank_database: Database) -> None:
    with connected(blank_database.dsn) as connection:
        connection.execute(
            "create unlogged table push_notifications (id uuid primary key, tenant uuid not null, "
            "title text not null, status text default 'draft');"
            "insert into push_notifications values (gen_random_uuid(), gen_random_uuid(), 'x', 'processing')"
        )
    assert migrate.foresee(blank_database.dsn) == [
        "row-level security is off on push_notifications: every role with a grant on it reaches all of its rows",
        "push_notifications is unlogged: after a crash of the database it is empty",
        "push_notifications.status is 'draft'::text where nothing else is said: a row is sent once it is 'pending'",
        "push_notifications.tenant is NOT NULL without a default: enqueue_push and push-listener send, which know "
        "nothing of it, cannot add rows",
        "push_notifications has rows in status 'processing', in the hands of the application: 1 of them, which are "
        "left to it",
    ]


def test_a_status_without_a_default_is_pointed_out(blank_database: Database) -> None:
    with connected(blank_database.dsn) as connection:
        connection.execute(
            "create table push_notifications (id uuid primary key, status text);"
            "alter table push_notifications enable row level security"
        )
    assert migrate.foresee(blank_database.dsn) == [
        "push_notifications.status has no default, and is given one: a row of which nothing else is said will be "
        "'pending', and sent"
    ]


def test_webhooks_that_may_send_already_are_pointed_out(blank_database: Database) -> None:
    load(blank_database, "reference")
    with connected(blank_database.superuser_dsn) as connection:
        connection.execute(
            "create schema supabase_functions; create function supabase_functions.http_request() returns trigger "
            "language plpgsql as 'begin return null; end'; create trigger send after insert on push_notifications "
            "for each row execute function supabase_functions.http_request()"
        )
    assert migrate.foresee(blank_database.dsn)[1] == (
        "the trigger send on push_notifications makes HTTP requests (supabase_functions.http_request()): if they "
        "send pushes, drop it before push-listener runs, or each is sent twice"
    )


def test_preflight_knows_every_name_that_is_made(database: Database, blank_database: Database) -> None:
    """The list of functions, their arguments and the indexes stands in 0001, before any of them is there."""
    with connected(database.dsn) as connection:
        functions = connection.execute(
            "select proname, pg_get_function_arguments(oid) as arguments, pg_get_function_identity_arguments(oid) "
            "as bare from pg_proc where pronamespace = 'public'::regnamespace "
            "and proname <> 'push_disable_token' order by 1"
        ).fetchall()
        indexes = connection.execute(
            "select indexrelid::regclass::text as name from pg_index join pg_class c on c.oid = indexrelid "
            "where c.relnamespace = 'public'::regnamespace and not exists "
            "(select from pg_constraint k where k.conindid = indexrelid) order by 1"
        ).fetchall()
    assert len(functions) >= 11
    with connected(blank_database.dsn) as connection:
        for function in functions:
            name = sql.Identifier(function["proname"])
            more = ", " if function["arguments"] else ""
            for arguments in (function["bare"], f"{function['arguments']}{more}p_more text default null"):
                connection.execute(
                    sql.SQL("create function {}({}) returns integer language sql as 'select 1'").format(
                        name,
                        sql.SQL(arguments),
                    )
                )
        for index in indexes:
            connection.execute(sql.SQL("create table {} ()").format(sql.Identifier(index["name"])))
    with pytest.raises(migrate.MigrationError) as refusal:
        migrate.foresee(blank_database.dsn)
    said = str(refusal.value)
    for function in functions:
        assert len(re.findall(rf"there is a function public\.{function['proname']}\(", said)) == 2, function
    for index in indexes:
        assert f"there is a table {index['name']}, named as an index" in said


def before(step: str) -> int:
    """The version of a database that does not have this step yet."""
    return next(each.version for each in migrate.load() if each.name == step) - 1


def test_what_is_in_the_way_of_a_later_step_is_named_by_it(database: Database) -> None:
    """A database that has the first steps is not looked at by the preflight again."""
    dsn = database.dsn
    migrate.rollback(dsn, before("clients"))
    with connected(dsn) as connection:
        connection.execute(
            "create function enqueue_pushes(n integer) returns integer language sql as 'select n'"
        )
        # Of the two that are there now, the one with a batch id is taken for the application's.
        connection.execute(
            "create function flush_telemetry(a jsonb[]) returns integer language sql as 'select 1'"
        )
        connection.execute("alter table push_notifications add column fid uuid")
        with pytest.raises(migrate.MigrationError) as refusal:
            migrate.apply(dsn)
        for line in (
            "there is a function public.enqueue_pushes(integer), named as one that push-listener makes",
            "there is a function public.flush_telemetry(jsonb[],uuid), with the arguments that push-listener's own",
            "push_notifications.fid is uuid, and has to be text: rename it",
        ):
            assert line in str(refusal.value)
        connection.execute("drop function enqueue_pushes(integer); drop function flush_telemetry(jsonb[])")
        connection.execute("alter table push_notifications rename column fid to flight")
    migrate.apply(dsn)
    assert all(state.applied_at is not None for state in migrate.status(dsn))


def test_a_column_fid_of_the_applications_own_is_used_and_left(blank_database: Database) -> None:
    dsn = blank_database.dsn
    load(blank_database, "reference")
    said: list[str] = []
    with connected(dsn) as connection:
        connection.execute("alter table push_notifications add column fid varchar(22)")
        migrate.apply(dsn, warn=said.append)
        assert [line for line in said if line.startswith("push_notifications has a column fid, which stays")]
        connection.execute("select enqueue_push(p_fid => 'dIsVQ2QVRT-TWzQVxvNYhM', p_title => 't')")
        migrate.rollback(dsn, before("clients"))
        assert connection.execute("select fid from push_notifications where fid is not null").fetchall() == [
            {"fid": "dIsVQ2QVRT-TWzQVxvNYhM"}
        ]


def test_installation_ids_are_not_lost_unasked(database: Database) -> None:
    with connected(database.dsn) as connection:
        connection.execute("select enqueue_push(p_fid => 'dIsVQ2QVRT-TWzQVxvNYhM', p_title => 't')")
        with pytest.raises(migrate.MigrationError, match="1 rows that name their device in fid alone"):
            migrate.rollback(database.dsn, before("clients"))
        migrate.rollback(database.dsn, before("clients"), discard_data=True)
        row = connection.execute("select * from push_notifications").fetchone()
    assert row is not None
    assert "fid" not in row


# --- beside an application at work -----------------------------------------------------------------------


def test_whoever_reads_for_long_is_waited_for_without_anybody_waiting_for_us(
    blank_database: Database,
) -> None:
    """ALTER TABLE has to wait for a reader; whoever comes after it must not have to wait for the ALTER TABLE."""
    dsn = blank_database.dsn
    load(blank_database, "reference")
    with psycopg.connect(dsn) as reader, connected(dsn) as writer:
        reader.execute("select count(*) from push_notifications")  # and its transaction stays open
        steps = migrate.load()[:3]  # the third changes the table
        thread = threading.Thread(target=migrate.apply, args=(dsn, steps))
        thread.start()
        for _ in range(2):
            while not writer.execute(
                "select from pg_locks where relation = 'push_notifications'::regclass "
                "and mode = 'AccessExclusiveLock' and not granted"
            ).fetchall():
                assert thread.is_alive()
                time.sleep(0.005)
            writer.execute("insert into push_notifications (title, body) values ('meanwhile', 'b')")
            assert thread.is_alive()
        reader.rollback()
        thread.join()
    assert migrate.apply(dsn, steps) == []


def test_a_row_that_others_have_locked_is_neither_waited_for_nor_forgotten(undecided: Database) -> None:
    """The rows after it are decided at once; it is decided when it is free."""
    dsn = undecided.dsn
    waiting = (
        "select count(*) as n from push_notifications where status = 'pending' and next_attempt_at is null"
    )
    with psycopg.connect(dsn) as holder, connected(dsn) as connection:
        holder.execute("select from push_notifications where body = 'waiting' for update")
        thread = threading.Thread(target=migrate.apply, args=(dsn, decided()))
        thread.start()
        while connection.execute(waiting).fetchone() != {"n": 1}:
            assert thread.is_alive()
            time.sleep(0.005)
        assert connection.execute("select from pg_locks where not granted").fetchall() == []
        holder.rollback()
        thread.join()
    assert migrate.apply(dsn, decided()) == []


def test_a_row_that_stays_locked_stops_the_step_which_names_the_holder(undecided: Database) -> None:
    dsn = undecided.dsn
    with psycopg.connect(dsn) as holder:
        holder.execute("select from push_notifications where body = 'waiting' for update")
        with pytest.raises(
            migrate.MigrationError, match="1 waiting rows of push_notifications are locked"
        ) as told:
            migrate.apply(dsn + "&options=-cpush_listener.lock_patience%3D100ms")
        assert f"process {holder.info.backend_pid} of role postgres" in str(told.value)
    migrate.apply(dsn, decided())


def test_an_index_that_waits_for_an_old_snapshot_says_for_which(undecided: Database) -> None:
    dsn = undecided.dsn
    said: list[str] = []
    told = threading.Event()
    migrate.apply(dsn, decided())
    with psycopg.connect(dsn) as reader:
        pid = reader.info.backend_pid

        def warn(line: str) -> None:
            if line.startswith(f"the index waits for process {pid} "):
                said.append(line)
                told.set()

        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select 'S3cr3t' from pg_class")
        thread = threading.Thread(
            target=migrate.apply,
            args=(dsn, migrate.load()[:12]),
            kwargs={"warn": warn, "patience": migrate.Patience(note=0.1)},
        )
        thread.start()
        assert told.wait(PATIENCE)  # it may have to wait for others before, such as autovacuum
        reader.rollback()
        thread.join()
    (line,) = said
    assert line.startswith(f"the index waits for process {pid} of role postgres")
    assert "(idle in transaction; its last statement: select)" in line
    assert "S3cr3t" not in line
