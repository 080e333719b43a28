"""``tail``, ``requeue``, ``cancel`` and ``stats --watch``, as a person calls them."""

from __future__ import annotations

import os
import signal
from typing import Any
from uuid import uuid4

import orjson
import psycopg
import pytest

from listener.interrupts import EXIT_CODE
from tests.support.cli import invoke
from tests.support.postgres import Database
from tests.support.service import Rows, program

EVIL = "[red]x[/red]\x1b[2J\x9b31m\u202egnp.exe"
"""Markup, escape sequences, and a text that runs the other way."""

_ENDED = (
    "insert into push_notifications (title, status, next_attempt_at, error_code, user_id) "
    "select %(title)s, %(status)s, null, %(code)s, %(user)s::uuid from generate_series(1, %(number)s::integer)"
)
USER = uuid4()


async def _add(rows: Rows, status: str, code: str | None, number: int = 1, user: Any = None) -> None:
    await rows.query(_ENDED, title=EVIL, status=status, code=code, user=user, number=number)


async def _statuses(rows: Rows) -> dict[tuple[str, str], int]:
    found = await rows.query(
        "select status, coalesce(error_code, '') as code, count(*) from push_notifications group by 1, 2"
    )
    return {(row["status"], row["code"]): row["count"] for row in found}


def _is_harmless(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text) and "\u202e" not in text


async def test_requeue_by_user_and_code_changes_these_and_no_others(database: Database, rows: Rows) -> None:
    await _add(rows, "dead", "INTERNAL", 3, USER)
    await _add(rows, "dead", "UNREGISTERED", 2, USER)
    await _add(rows, "dead", "INTERNAL", 2, uuid4())
    chosen = ("requeue", "--code", "INTERNAL", "--user", str(USER))
    shown = await invoke(database.dsn, *chosen, "--dry-run")
    assert shown.exit_code == 0
    assert "to be requeued: 3 pushes" in shown.stdout
    assert "[red]x[/red]" in shown.stdout
    assert _is_harmless(shown.stdout)
    assert (await _statuses(rows))["dead", "INTERNAL"] == 5
    done = await invoke(database.dsn, *chosen, "--yes", "--json", "--reason", "FCM was away")
    told = orjson.loads(done.stdout)
    assert (done.exit_code, told["changed"], told["skipped"], told["aborted"]) == (0, 3, 0, False)
    assert await _statuses(rows) == {
        ("dead", "INTERNAL"): 2, ("dead", "UNREGISTERED"): 2, ("pending", "INTERNAL"): 3,
    }  # fmt: skip
    (action,) = await rows.query("select * from push_listener.actions")
    assert action["who"].startswith("cli:")
    assert (action["what"], action["affected"], action["reason"]) == ("requeue", 3, "FCM was away")
    assert action["filter"] == {"code": "INTERNAL", "user": str(USER)}
    assert str(action["run"]) == told["run"]


async def test_nothing_is_changed_unless_the_answer_is_yes(database: Database, rows: Rows) -> None:
    await _add(rows, "dead", "INTERNAL", 3)
    done = await invoke(database.dsn, "requeue", "--status", "dead")
    assert done.exit_code == 1
    assert await _statuses(rows) == {("dead", "INTERNAL"): 3}


async def test_who_may_see_a_push_twice_is_told(database: Database, rows: Rows) -> None:
    await _add(rows, "dead", "NOT_WRITTEN", 2)
    await rows.query(
        "update push_notifications set sent_at = now() where id = (select id from push_notifications limit 1)"
    )
    done = await invoke(database.dsn, "requeue", "--code", "NOT_WRITTEN", "--dry-run")
    assert "1 of them may be seen twice" in done.stderr


async def test_by_ids(database: Database, rows: Rows) -> None:
    await _add(rows, "cancelled", None)
    await _add(rows, "sent", None)
    ids = {
        row["status"]: str(row["id"]) for row in await rows.query("select id, status from push_notifications")
    }
    done = await invoke(database.dsn, "requeue", ids["cancelled"], ids["cancelled"], "--yes")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "requeued: 1 of 1")
    done = await invoke(database.dsn, "cancel", ids["cancelled"], ids["sent"], str(uuid4()), "--yes")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (1, "cancelled: 1 of 3")
    assert "1 of these pushes do not exist" in done.stderr
    assert await _statuses(rows) == {("cancelled", ""): 1, ("sent", ""): 1}


async def test_cancel_all_of_a_user(database: Database, rows: Rows) -> None:
    await rows.query(
        "insert into push_notifications (title, user_id, next_attempt_at) "
        "select 't', %(user)s::uuid, now() + interval '1 h' from generate_series(1, 1200)",
        user=USER,
    )
    await rows.query(
        "insert into push_notifications (title, next_attempt_at) values ('t', now() + interval '1 h')"
    )
    done = await invoke(database.dsn, "cancel", "--user", str(USER), "--yes")
    assert done.exit_code == 0
    assert "to be cancelled: 1,000+ pushes" in done.stdout
    assert "cancelled: 1,200 (run " in done.stdout
    assert await _statuses(rows) == {("cancelled", ""): 1200, ("pending", ""): 1}
    (sums,) = await rows.query(
        "select count(*), sum(affected) as sum, count(distinct run) as runs from push_listener.actions"
    )
    assert (sums["count"], sums["sum"], sums["runs"]) == (3, 1200, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["requeue"],
        ["requeue", "no-id"],
        ["requeue", str(uuid4()), "--code", "INTERNAL"],
        ["requeue", "--code", "internal"],
        ["requeue", "--status", "sent"],
        ["cancel", "--status", "dead"],
        ["cancel", "--user", "me"],
        ["requeue", "--since", "yesterday"],
        ["requeue", "--code", "INTERNAL", "--json"],
        ["requeue", "--code", "INTERNAL", "--reason", "x" * 1001],
        ["tail", "--status", "pending"],
        ["stats", "--watch", "0"],
    ],
    ids=" ".join,
)
async def test_wrong_usage(database: Database, arguments: list[str]) -> None:
    done = await invoke(database.dsn, *arguments)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


async def test_a_login_that_may_not_act_is_told_what_to_do(database: Database, rows: Rows) -> None:
    await _add(rows, "dead", "INTERNAL")
    with psycopg.connect(database.superuser_dsn, autocommit=True) as conn:
        conn.execute("create role onlooker login in role push_listener")
    may_not = database.dsn_as("onlooker")
    done = await invoke(may_not, "requeue", "--code", "INTERNAL", "--yes")
    assert done.exit_code == 1
    assert "grant push_listener_operator to" in done.stderr
    done = await invoke(may_not, "requeue", "--code", "INTERNAL", "--yes", OPERATOR_DATABASE_URL=database.dsn)
    assert done.exit_code == 0
    assert await _statuses(rows) == {("pending", "INTERNAL"): 1}


def _environment(database: Database) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "DATABASE_URL": database.dsn, "COLUMNS": "200"}


@pytest.mark.parametrize("as_json", [False, True])
async def test_tail_follows_what_ends(database: Database, rows: Rows, as_json: bool) -> None:
    await _add(rows, "dead", "UNREGISTERED")
    await _add(rows, "sent", None)
    arguments = ["tail", "--status", "dead", "--since", "1h", *(["--json"] if as_json else [])]
    async with program(*arguments, env=_environment(database)) as running:
        await running.printed("UNREGISTERED")
        await _add(rows, "dead", "INTERNAL")
        await running.printed("INTERNAL")
        running.signal(signal.SIGINT)
        assert await running.ended() == EXIT_CODE
    lines = [line for line in running.output.splitlines() if "dead" in line]
    assert len(lines) == 2
    assert "sent" not in " ".join(lines)
    if as_json:
        assert {orjson.loads(line)["error_code"] for line in lines} == {"UNREGISTERED", "INTERNAL"}
    else:
        assert "[red]x[/red]" in lines[0]
    assert "\x1b" not in running.output
    assert "Traceback" not in running.output


async def test_stats_are_shown_anew(database: Database) -> None:
    async with program("stats", "--watch", "0.1", "--json", env=_environment(database)) as running:
        await running.printed('}\n{"waiting"')
        running.signal(signal.SIGINT)
        assert await running.ended() == EXIT_CODE
    assert "Traceback" not in running.output
