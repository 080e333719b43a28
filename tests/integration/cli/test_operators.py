"""``tail``, ``requeue``, ``cancel`` and ``stats --watch``, as a person calls them."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from uuid import uuid4

import orjson
import psycopg
import pytest

from listener.interrupts import EXIT_CODE
from listener.operating.reading import Reading
from listener.operating.records import Count, Preview
from tests.support.cli import invoke
from tests.support.postgres import Database
from tests.support.service import PATIENCE, PROJECT, Rows, naming, program, until_found

EVIL = "[red]x[/red]\x1b[2J\x9b31m\u202egnp.exe"
"""Markup, escape sequences, and a text that runs the other way."""

_REASON = (
    "FCM does not know\x1b[2J cLwDkXAPQ0aQqWZbZ3sPQZ:APA91bHun4MxP5egoKMwt2KZFBaFUH-1RYqx "
    + "very " * 40
    + "well"
)
_TOLD = "FCM does not know [2J [hidden]:[hidden] " + "very " * 40 + "well"
"""As it is shown: without a token, and without what a terminal obeys."""

_ENDED = (
    "insert into push_notifications (title, status, next_attempt_at, error_code, last_error, user_id) "
    "select %(title)s, %(status)s, null, %(code)s, %(reason)s, %(user)s::uuid "
    "from generate_series(1, %(number)s::integer)"
)
USER = uuid4()
ANY_ID = "01a22910-9894-769c-b4e5-0ec9eb781c60"


async def _add(rows: Rows, status: str, code: str | None, number: int = 1, user: Any = None) -> None:
    reason = _REASON if code else None
    await rows.query(_ENDED, title=EVIL, status=status, code=code, reason=reason, user=user, number=number)


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


async def test_who_may_see_a_push_twice_is_told_for_ids(database: Database, rows: Rows) -> None:
    push = await rows.add(
        device_token="t",
        title="t",
        status="dead",
        error_code="NOT_WRITTEN",
        sent_at=datetime.now(UTC),
        next_attempt_at=None,
    )
    done = await invoke(database.dsn, "requeue", str(push), "--dry-run")
    assert "1 of them may be seen twice" in done.stderr


async def test_a_preview_by_ids_tells_what_will_not_be_changed(database: Database, rows: Rows) -> None:
    gone = datetime.now(UTC) - timedelta(hours=1)
    sent = await rows.add(device_token="t", title="t", status="sent", next_attempt_at=None)
    late = await rows.add(device_token="t", title="t", status="dead", expires_at=gone, next_attempt_at=None)
    dead = await rows.add(device_token="t", title="t", status="dead", next_attempt_at=None)
    done = await invoke(database.dsn, "requeue", str(sent), "--dry-run")
    assert done.exit_code == 0
    assert "no push is to be requeued" in done.stdout
    done = await invoke(database.dsn, "requeue", str(sent), str(late), str(dead), "--dry-run")
    will, will_not = done.stdout.split("not to be requeued: 2; only dead, expired,")
    assert will.startswith("to be requeued: 1 push, ")
    assert (str(dead) in will, str(sent) in will_not, str(late) in will_not) == (True, True, True)
    done = await invoke(database.dsn, "requeue", str(sent), str(late), str(dead), "--yes")
    assert (done.exit_code, done.stdout.splitlines()[-4:]) == (
        1,
        ["requeued: 1 of 3", "not changed:", str(sent), str(late)],
    )


async def test_what_changes_after_the_question_is_left_alone(
    database: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = await rows.add(
        device_token="t", title="t", status="dead", error_code="INTERNAL", next_attempt_at=None
    )
    loop = asyncio.get_running_loop()

    def meanwhile(*_: object, **__: object) -> bool:
        work = rows.query("update push_notifications set error_code = 'UNREGISTERED', updated_at = now()")
        asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE)
        return True

    monkeypatch.setattr("click.confirm", meanwhile)
    done = await invoke(database.dsn, "requeue", str(push))
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (1, "requeued: 0 of 1")
    assert "changed by others meanwhile" in done.stderr
    assert (await rows.get(push))["status"] == "dead"


async def test_a_preview_shows_whole_ids_and_statuses_in_80_columns(database: Database, rows: Rows) -> None:
    push = await rows.add(
        device_token="t", title="A title", status="dead", error_code="UNREGISTERED", next_attempt_at=None
    )
    done = await invoke(database.dsn, "requeue", "--code", "UNREGISTERED", "--dry-run", COLUMNS="80")
    assert f"dead      {push} token " in done.stdout


async def test_json_on_a_terminal_is_obeyed_by_no_terminal(database: Database, rows: Rows) -> None:
    """U+009B is what ESC [ is. JSON may hold it as it is, and can write it as an escape."""
    title = "\x9b31m\u202egnp \x7f \U000e0001 é"
    push = await rows.add(title=title, status="dead", error_code="X", next_attempt_at=None)
    done = await invoke(database.dsn, "requeue", str(push), "--dry-run", "--json")
    assert orjson.loads(done.stdout)["examples"][0]["title"] == title
    assert _is_harmless(done.stdout)
    assert "é" in done.stdout


_REFUSE_AFTER_ONE_BATCH: LiteralString = """
create function public.refuse() returns trigger language plpgsql as $$ begin
  if (select count(*) from push_listener.actions) >= 1 then raise exception 'no'; end if;
  return new;
end $$;
create trigger refuse before update on push_notifications for each row execute function public.refuse()
"""


@pytest.mark.parametrize("as_json", [False, True])
async def test_an_error_in_the_middle_says_what_was_changed(
    database: Database, rows: Rows, as_json: bool
) -> None:
    await _add(rows, "dead", "INTERNAL", 600)
    await rows.query(_REFUSE_AFTER_ONE_BATCH)
    done = await invoke(
        database.dsn, "requeue", "--code", "INTERNAL", "--yes", *(["--json"] if as_json else [])
    )
    (action,) = await rows.query("select run from push_listener.actions")
    assert done.exit_code == 1
    assert "Error: the database: " in done.stderr
    if as_json:
        told = orjson.loads(done.stdout)
        assert (told["changed"], told["run"]) == (500, str(action["run"]))
        assert told["error"].startswith("the database: ")
    else:
        assert f"requeued: 500 (run {action['run']})" in done.stdout
        assert "what was changed stays changed" in done.stderr
    assert await _statuses(rows) == {("pending", "INTERNAL"): 500, ("dead", "INTERNAL"): 100}


_WAIT_AFTER_ONE_BATCH: LiteralString = """
create function public.hold() returns trigger language plpgsql as $$ begin
  if (select count(*) from push_listener.actions) >= 1 then perform pg_advisory_xact_lock(1, 1); end if;
  return new;
end $$;
create trigger hold before update on push_notifications for each row execute function public.hold()
"""
_SOMEBODY_WAITS: LiteralString = (
    "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
)


async def test_a_second_ctrl_c_ends_the_batch_too_and_says_what_was_changed(
    database: Database, rows: Rows
) -> None:
    await _add(rows, "dead", "INTERNAL", 600)
    await rows.query(_WAIT_AFTER_ONE_BATCH)
    async with await psycopg.AsyncConnection.connect(database.dsn) as holder:
        await holder.execute("select pg_advisory_xact_lock(1, 1)")
        command = ("requeue", "--code", "INTERNAL", "--yes")
        async with program(*command, env=_environment(database), forked=True) as running:
            await until_found(rows.query, _SOMEBODY_WAITS)
            running.signal(signal.SIGINT)
            await running.printed_to_stderr("another Ctrl-C undoes it")
            running.signal(signal.SIGINT)
            assert await running.ended() == EXIT_CODE
    assert "requeued: 500 (run " in running.out
    assert "Traceback" not in running.output
    assert await _statuses(rows) == {("pending", "INTERNAL"): 500, ("dead", "INTERNAL"): 100}


async def test_a_preview_that_has_found_nothing_yet_does_not_ask_about_0_pushes(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def preview(*_: object, **__: object) -> Preview:
        return Preview(Count(0, False), [], Count(0, False), datetime.now(UTC))

    monkeypatch.setattr(Reading, "preview", preview)
    done = await invoke(database.dsn, "requeue", "--code", "INTERNAL")
    assert (done.exit_code, "0" in done.stdout) == (1, False)
    assert "look through the others, and requeue all that match?" in done.stdout


async def test_by_ids(database: Database, rows: Rows) -> None:
    await _add(rows, "cancelled", None)
    await _add(rows, "sent", None)
    ids = {
        row["status"]: str(row["id"]) for row in await rows.query("select id, status from push_notifications")
    }
    done = await invoke(database.dsn, "requeue", ids["cancelled"], ids["cancelled"], "--yes")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "requeued: 1 of 1")
    done = await invoke(database.dsn, "cancel", ids["cancelled"], ids["sent"], str(uuid4()), "--yes")
    assert done.exit_code == 1
    assert "\ncancelled: 1 of 3\nnot changed:\n" in done.stdout
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


WRONG = [
    ["requeue"],
    ["requeue", "no-id"],
    ["requeue", ANY_ID, "--code", "INTERNAL"],
    ["requeue", "--code", "internal"],
    ["requeue", "--status", "sent"],
    ["cancel", "--status", "dead"],
    ["cancel", "--user", "me"],
    ["requeue", "--since", "yesterday"],
    ["requeue", "--code", "INTERNAL", "--json"],
    ["requeue", "--code", "INTERNAL", "--reason", "x" * 1001],
    ["tail", "--status", "pending"],
    ["stats", "--watch", "0"],
]


async def test_wrong_usage(database: Database) -> None:
    for arguments in WRONG:
        with naming(" ".join(arguments)):
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
    async with program(*arguments, env=_environment(database), forked=True) as running:
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
        assert {orjson.loads(line)["last_error"] for line in lines} == {_TOLD}
    else:
        assert "[red]x[/red]" in lines[0]
        assert all(line.endswith(f" - {_TOLD}") for line in lines)
    assert "\x1b" not in running.output
    assert "Traceback" not in running.output


async def test_tail_goes_on_when_the_database_comes_back(database: Database, rows: Rows) -> None:
    await _add(rows, "dead", "UNREGISTERED")
    async with program("tail", "--since", "1h", env=_environment(database), forked=True) as running:
        await running.printed("UNREGISTERED")
        await rows.query(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'push-listener tail'"
        )
        await running.printed_to_stderr("it is tried again")
        await _add(rows, "dead", "INTERNAL")
        await running.printed("INTERNAL")


async def test_json_for_a_reader_that_has_enough_ends_without_a_report(
    database: Database, rows: Rows
) -> None:
    await _add(rows, "dead", "INTERNAL", 1000)  # more than a pipe takes
    shell = await asyncio.create_subprocess_shell(
        f"{shlex.quote(sys.executable)} -m listener tail --json --since 1h | head -n 1",
        env=_environment(database),
        cwd=PROJECT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await shell.communicate()
    assert (len(out.splitlines()), err.decode()) == (1, "")


async def test_stats_are_shown_anew(database: Database) -> None:
    async with program(
        "stats", "--watch", "0.1", "--json", env=_environment(database), forked=True
    ) as running:
        await running.printed('}\n{"waiting"')
        running.signal(signal.SIGINT)
        assert await running.ended() == EXIT_CODE
    assert "Traceback" not in running.output
