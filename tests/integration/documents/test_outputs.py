"""What a page says that a command prints, or that a function answers, is what it prints and answers."""

from __future__ import annotations

import json
import re
import signal
from typing import LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest

from listener.emulator import answers
from listener.fcm.outcome import classify
from listener.postgres import connect
from listener.schema import migrate
from tests.support.cli import invoke
from tests.support.documents import blocks, is_like, shape, shown_calls, sql_blocks, text_of
from tests.support.postgres import Database
from tests.support.service import Rows, program

TITLE = "Your ride is here"


_DEAD: LiteralString = """
insert into push_notifications (id, device_token, title, status, error_code, last_error, lost_claims, next_attempt_at)
  select id, 't', %(title)s, 'dead', %(code)s, %(reason)s, %(lost)s::integer, null from unnest(%(ids)s::uuid[]) id
"""
_WAITING: LiteralString = """
insert into push_notifications (user_id, title, next_attempt_at)
  select %(user)s::uuid, 't', now() + interval '1 h' from generate_series(1, 1200)
"""


async def test_of_the_commands_for_operators(database: Database, rows: Rows) -> None:
    """docs/commands.md, call by call."""
    tail, *calls = shown_calls("docs/commands.md")
    await _tail(database, rows, *tail)
    words = [word for arguments, _ in calls for word in arguments]
    first, second, sent, user = (UUID(word) for word in words if re.fullmatch(r"[0-9a-f-]{36}", word))
    refused = classify(401, {}, answers.refused_by_apple("InvalidProviderToken").body)
    why = {"title": TITLE, "code": "THIRD_PARTY_AUTH_ERROR", "reason": refused.reason}
    await rows.query(_DEAD, ids=[first, second], lost=1, **why)
    await rows.query(_DEAD, ids=[uuid4() for _ in range(10)], lost=0, **why)
    await rows.add(id=sent, device_token="t", title=TITLE, status="sent", next_attempt_at=None)
    await rows.query(_WAITING, user=user)
    for arguments, stated in calls:
        done = await invoke(database.dsn, *arguments, answer="y\n" if "[y/N]" in stated else "")
        assert shape(done.output) == shape(stated), done.output


async def _tail(database: Database, rows: Rows, arguments: list[str], stated: str) -> None:
    for _ in shape(stated):
        push = await rows.add(device_token="t", title=TITLE, status="delivered", next_attempt_at=None)
    async with program(
        *arguments, env={"DATABASE_URL": database.dsn, "PYTHONUNBUFFERED": "1"}, forked=True
    ) as running:
        await running.printed(f"{push} ")
        await running.printed(TITLE + "\n")
        running.signal(signal.SIGINT)
        await running.ended()
    assert shape(running.out) == shape(stated)


def test_of_the_functions(database: Database) -> None:
    """docs/sql.md: the rows of enqueue_pushes, and the JSON of get_push and flush_telemetry."""
    page = "docs/sql.md"
    progress, telemetry = [json.loads(text) for language, text in blocks(page) if language == "json"]
    stated = re.findall(r"^\| (\d) \| (\S*) ?\| (true|false)[^|]*\| (.*?) ?\|$", text_of(page), re.M)
    answers = {}
    with psycopg.connect(database.dsn) as conn:
        for function in ("enqueue_push", "enqueue_pushes", "flush_telemetry"):
            (block,) = (text for text in sql_blocks(page) if re.search(rf"^select .*\b{function}\(", text))
            answers[function] = conn.execute(block.encode()).fetchall()
        for statement in (
            "select register_device('a-phone', 'android', 'a0000000-0000-4000-8000-00000000000a')",
            "select mark_push_sent(id) from fetch_pending_pushes()",
            "select record_delivery_receipt(id, 'a-phone', 'delivered') from push_notifications",
        ):
            conn.execute(statement.encode())
        (answer,) = conn.execute("select get_push(id) from push_notifications").fetchall()
    rows = [
        (str(place), bool(push), str(new).lower(), error or "")
        for place, push, new, error in answers["enqueue_pushes"]
    ]
    assert rows == [(place, bool(push), new, error) for place, push, new, error in stated]
    assert is_like(telemetry, answers["flush_telemetry"][0][0]), answers
    assert is_like(progress, answer[0]), answer


def test_of_the_statistics(database: Database) -> None:
    """docs/retention.md: the columns of get_push_delivery_stats, with their types."""
    stated = re.findall(r"^\| `(\w+)` \| (bigint|numeric|interval) \|", text_of("docs/retention.md"), re.M)
    with psycopg.connect(database.dsn) as conn:
        row = conn.execute(
            "select pg_get_function_result('public.get_push_delivery_stats(integer)'::regprocedure)"
        ).fetchone()
    assert row == (f"TABLE({', '.join(' '.join(column) for column in stated)})",)


@pytest.mark.oldest_postgres
def test_of_the_default_for_ids(blank_database: Database) -> None:
    """docs/retention.md: in an adopted table new ids are in order of time; migrate leaves that as it is."""
    (block,) = sql_blocks("docs/retention.md")
    with psycopg.connect(blank_database.dsn, autocommit=True) as conn:
        conn.execute(
            "create table push_notifications (id uuid primary key default gen_random_uuid(), user_id uuid, title text, "
            "status text default 'pending', created_at timestamptz default now())"
        )
        migrate.apply(blank_database.dsn)
        conn.execute(block.encode())
        ids = [
            row[0]
            for statement in (
                "insert into push_notifications (title) values ('t') returning id",
                "select enqueue_push(p_topic => 't', p_title => 't')",
                """select id from enqueue_pushes(array['{"topic": "t", "title": "t"}']::jsonb[])""",
            )
            for row in conn.execute(statement.encode()).fetchall()
        ]
    assert [each.version for each in ids] == [7, 7, 7]
    assert sorted(ids, key=lambda each: int(each.int >> 80)) == ids
    assert migrate.apply(blank_database.dsn) == []
    assert (migrate.damages(blank_database.dsn), migrate.drift(blank_database.dsn)) == ([], [])


def test_the_page_about_poolers_names_every_setting_of_a_session() -> None:
    page = text_of("docs/poolers.md")
    names = re.findall(r"set_config\('(\w+)'", connect._SETTINGS + connect.PLANNING)
    assert len(names) == 5
    assert [name for name in names if f"`{name}`" not in page] == []
