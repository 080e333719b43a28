"""What an operator relies on: all that match, the same figures everywhere, previews that come true."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import aiohttp
import orjson
import psycopg
import pytest

from listener.emulator import Emulator
from tests.support.cli import invoke
from tests.support.postgres import Database
from tests.support.service import Rows, serving, settings_for


async def test_the_preview_of_ticked_pushes_leaves_out_those_whose_time_is_over(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    gone = datetime.now(UTC) - timedelta(hours=1)
    push = await rows.add(
        device_token="t",
        title="t",
        status="expired",
        error_code="EXPIRED",
        expires_at=gone,
        next_attempt_at=None,
    )
    async with (
        serving(settings_for(database.dsn, emulator)) as service,
        aiohttp.ClientSession(f"http://127.0.0.1:{service.port}") as http,
        http.get(f"/preview?what=requeue&id={push}", headers={"Accept": "text/html"}) as answer,
    ):
        assert "Nothing to requeue" in await answer.text()


async def test_the_preview_of_ticked_pushes_says_who_may_see_one_twice(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    push = await rows.add(
        device_token="t",
        title="t",
        status="dead",
        error_code="NOT_WRITTEN",
        sent_at=datetime.now(UTC),
        next_attempt_at=None,
    )
    async with (
        serving(settings_for(database.dsn, emulator)) as service,
        aiohttp.ClientSession(f"http://127.0.0.1:{service.port}") as http,
        http.get(f"/preview?what=requeue&id={push}", headers={"Accept": "text/html"}) as answer,
    ):
        assert "FCM may have accepted them" in await answer.text()


async def test_a_run_of_another_process_is_shown_before_its_first_batch(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    """Behind a load balancer the next request goes to another process."""
    await rows.add(device_token="t", title="t", status="dead", error_code="INTERNAL", next_attempt_at=None)
    settings = settings_for(database.dsn, emulator)
    async with (
        serving(settings) as one,
        serving(settings) as other,
        await psycopg.AsyncConnection.connect(database.dsn) as holder,
        aiohttp.ClientSession() as http,
    ):
        await holder.execute(
            "lock table push_listener.actions in share mode"
        )  # the first batch takes its time
        async with http.post(
            f"http://127.0.0.1:{one.port}/act",
            data={"what": "requeue", "status": "dead", "frozen": datetime.now(UTC).isoformat()},
            headers={"Sec-Fetch-Site": "same-origin"},
            allow_redirects=False,
        ) as answer:
            assert answer.status == 303
            where = answer.headers["Location"]
        async with http.get(
            f"http://127.0.0.1:{other.port}{where}", headers={"Accept": "text/html"}
        ) as answer:
            status = answer.status
        await holder.rollback()
    assert status == 200


async def test_a_dry_run_by_id_does_not_promise_what_will_not_happen(database: Database, rows: Rows) -> None:
    push = await rows.add(device_token="t", title="t", status="sent", next_attempt_at=None)
    done = await invoke(database.dsn, "requeue", str(push), "--dry-run")
    assert "to be requeued" not in done.stdout


async def test_what_changes_after_the_question_is_left_alone(
    database: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The help of requeue says so, of ids and of filters alike."""
    push = await rows.add(
        device_token="t", title="t", status="dead", error_code="INTERNAL", next_attempt_at=None
    )
    loop = asyncio.get_running_loop()

    def meanwhile(*_: object, **__: object) -> bool:
        work = rows.query("update push_notifications set error_code = 'UNREGISTERED', updated_at = now()")
        asyncio.run_coroutine_threadsafe(work, loop).result(30)
        return True

    monkeypatch.setattr("click.confirm", meanwhile)
    await invoke(database.dsn, "requeue", str(push))
    assert (await rows.get(push))["status"] == "dead"


async def test_json_on_a_terminal_obeys_nobody(database: Database, rows: Rows) -> None:
    """U+009B is what ESC [ is: a terminal obeys it. JSON can write it as an escape."""
    push = await rows.add(title="\x9b31m\u202egnp", status="dead", error_code="X", next_attempt_at=None)
    done = await invoke(database.dsn, "requeue", str(push), "--dry-run", "--json")
    assert orjson.loads(done.stdout)["examples"][0]["title"] == "\x9b31m\u202egnp"
    assert all(c.isprintable() or c == "\n" for c in done.stdout)


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
    assert "seen twice" in done.stdout + done.stderr


async def test_an_error_in_the_middle_says_what_was_changed(database: Database, rows: Rows) -> None:
    await rows.query(
        "insert into push_notifications (title, status, next_attempt_at, error_code) "
        "select 't', 'dead', null, 'INTERNAL' from generate_series(1, 600)"
    )
    await rows.query(
        "create function public.refuse() returns trigger language plpgsql as $$ begin "
        "if (select count(*) from push_listener.actions) >= 1 then raise exception 'no'; end if; return new; end $$"
    )
    await rows.query(
        "create trigger refuse before update on push_notifications for each row execute function public.refuse()"
    )
    done = await invoke(database.dsn, "requeue", "--code", "INTERNAL", "--yes")
    assert done.exit_code == 1
    assert "500" in done.stdout.split("as they were at")[-1] + done.stderr
