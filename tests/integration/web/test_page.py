"""The page of a running service: what it reads, what it makes of odd requests and rows, and how it ends."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import aiohttp
import psycopg
import pytest

from listener.emulator import Emulator
from listener.service import Service
from tests.support.postgres import Database
from tests.support.service import (
    PATIENCE,
    Program,
    Rows,
    environment,
    get,
    program,
    sample,
    serving,
    settings_for,
    shown,
    until,
    until_gone,
)

LOCAL = {"Accept": "text/html"}
LATER = "2099-01-01T00:00:00+00:00"


async def test_an_unwatched_page_holds_no_connection(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    held = (
        "select application_name from pg_stat_activity "
        "where application_name in ('push-listener page', 'push-listener operator') and datname = current_database()"
    )
    async with serving(settings_for(database.dsn, emulator)) as service:
        assert service.port is not None
        assert await rows.query(held) == []
        status, text = await get(service.port, "/", **LOCAL)
        assert (status, "Sending; no push is due." in text) == (200, True)
        assert [row["application_name"] for row in await rows.query(held)] == ["push-listener page"]
    await until_gone(rows.query, held)


async def test_the_charts_have_points_although_nobody_watched(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    async with serving(settings_for(database.dsn, emulator, queue_depth_interval=1)) as service:
        await rows.over(
            await rows.add(device_token="t", title="t"), await rows.add(device_token="dead-t", title="t")
        )
        history = service._page._history
        await until(lambda: sum(filter(None, history.series().accepted)) > 0 and history.series().failed)
        assert set(history.series().failed) == {"UNREGISTERED"}
        figures = service.state().figures
        assert figures is not None
        assert (figures.sent, figures.failed) == (1, {"UNREGISTERED": 1})


async def test_pushes_that_all_die_are_not_a_green_verdict(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    """DeadLetters and FailureRatio are tickets among the alerts: at least attention."""
    async with serving(settings_for(database.dsn, emulator)) as service:
        assert service.port is not None
        assert service._page is not None
        await service._page.snapshot()
        for n in range(40):
            await rows.add(device_token=f"t-{n}", title="t", data={"from": "x"})
        found = await rows.over()
        assert {row["status"] for row in found.values()} == {"dead"}
        _, text = await get(service.port, "/", **LOCAL)
    assert 'class="verdict attention"' in text
    assert "Pushes were given up in the last hour: 40 with " in text


async def test_a_page_shows_the_work_of_another_process(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    async with (
        serving(settings_for(database.dsn, emulator)) as working,
        program("run", env=environment(database.dsn, emulator, max_in_flight="1"), forked=True) as other,
    ):
        await other.said("ready")
        port = await other.port()
        push = await rows.add(device_token="t", title="the work of one of them")
        await rows.over(push)
        await shown(working.metrics, "push_in_flight", 0)
        _, text = await get(port, "/pushes", **LOCAL)
        assert "the work of one of them" in text


async def test_it_reads_the_queue_often_while_somebody_watches(
    database: Database, emulator: Emulator
) -> None:
    """A worker without any work reads it every two minutes."""
    async with (
        serving(settings_for(database.dsn, emulator)) as service,
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{service.port}/events") as answer,
    ):
        assert answer.status == 200
        read = "push_database_statement_seconds_count"
        await until(lambda: (sample(service.metrics, read, {"statement": "read"}) or 0) >= 2)
        assert service._watched.is_set()


async def test_without_a_database_the_page_says_so_and_the_process_is_healthy(database: Database) -> None:
    async with (
        Emulator() as emulator,
        program("run", env=environment(database.dsn, emulator), forked=True) as running,
    ):
        await running.said("ready")
        port = await running.port()
        assert (await get(port, "/", **LOCAL))[0] == 200
        await asyncio.to_thread(database.server.stop)
        await running.said("doorbell lost")
        status, text = await get(port, "/", **LOCAL)
        assert (status, "No push goes out from here: " in text) == (200, True)
        status, text = await get(port, "/pushes", **LOCAL)
        assert (status, "The database cannot be read" in text) == (503, True)
        assert await get(port, "/healthz") == (200, "ok\n")
        await asyncio.to_thread(database.server.start)
        async with asyncio.timeout(PATIENCE):
            while (await get(port, "/pushes", **LOCAL))[0] != 200:  # noqa: ASYNC110  # it has no event
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("streams", [0, 16])
async def test_streams_do_not_delay_the_end(database: Database, emulator: Emulator, streams: int) -> None:
    """They end as soon as SIGTERM comes, while the push that is in flight still has most of the grace period."""
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            program("run", env=environment(database.dsn, emulator, shutdown_grace="3600"), forked=True)
        )
        await running.said("ready")
        port = await running.port()
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        asked = [await http.get(f"http://127.0.0.1:{port}/events") for _ in range(streams)]
        assert [answer.status for answer in asked] == [200] * streams
        running.terminate()
        for answer in asked:
            assert await ends(answer)
        assert await running.ended() == 0
        assert order_of(running) == ["stopping", "stopped"]


async def ends(answer: aiohttp.ClientResponse) -> bool:
    async with asyncio.timeout(PATIENCE):
        try:
            while await answer.content.readany():
                pass
        except aiohttp.ClientError:
            return True
    return answer.content.at_eof()


def order_of(running: Program) -> list[str]:
    return [record["event"] for record in running.records if record["event"] in ("stopping", "stopped")]


async def test_streams_end_before_the_work_does(database: Database, rows: Rows) -> None:
    """The end of the streams waits for nothing: here a push is in flight, and FCM does not answer."""
    async with (
        Emulator(faults=["timeout,token=slow"]) as emulator,
        program("run", env=environment(database.dsn, emulator), forked=True) as running,
        aiohttp.ClientSession() as http,
    ):
        await running.said("ready")
        port = await running.port()
        push = await rows.add(device_token="slow", title="t")
        await rows.until(lambda all_rows: all_rows[push]["status"] == "processing", [push])
        async with http.get(f"http://127.0.0.1:{port}/events") as answer:
            running.terminate()
            assert await ends(answer)
            assert (await rows.get(push))["status"] == "processing"
            async with http.get(f"http://127.0.0.1:{port}/events") as late:
                assert late.status == 503
        running.terminate()
        assert await running.ended() == 0


@pytest.mark.parametrize(
    ("hours", "says"),
    [(-1, "Nothing to requeue"), (1, "FCM may have accepted them")],
    ids=["over", "in time"],
)
async def test_the_preview_of_ticked_pushes_says_what_would_come_of_it(
    database: Database, rows: Rows, emulator: Emulator, hours: int, says: str
) -> None:
    """The push was accepted once, and may be worth nothing any more."""
    push = await rows.add(
        device_token="t",
        title="t",
        status="expired",
        error_code="EXPIRED",
        sent_at=datetime.now(UTC),
        expires_at=datetime.now(UTC) + timedelta(hours=hours),
        next_attempt_at=None,
    )
    async with serving(settings_for(database.dsn, emulator)) as service:
        assert service.port is not None
        _, text = await get(service.port, f"/preview?what=requeue&id={push}", **LOCAL)
    assert says in text


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
        # The first batch takes its time.
        await holder.execute("lock table push_listener.actions in share mode")
        async with http.post(
            f"http://127.0.0.1:{one.port}/act",
            data={"what": "requeue", "status": "dead", "frozen": datetime.now(UTC).isoformat()},
            headers={"Sec-Fetch-Site": "same-origin"},
            allow_redirects=False,
        ) as answer:
            assert answer.status == 303
            where = answer.headers["Location"]
        assert other.port is not None
        status, text = await get(other.port, where, **LOCAL)
        await holder.rollback()
    assert (status, "no batch yet" in text) == (200, True)


# --- odd requests and odd rows ---------------------------------------------------------------------------------------


async def ask(service: Service, method: str, path: str, **options: Any) -> tuple[int, str]:
    """One request, as the page itself makes it."""
    headers = {"Origin": f"http://127.0.0.1:{service.port}", **LOCAL}
    url = f"http://127.0.0.1:{service.port}{path}"
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, url, headers=headers, allow_redirects=False, **options) as answer,
    ):
        return answer.status, await answer.text()


async def test_an_odd_address_is_the_readers_mistake_and_the_first_and_the_last_year_are_times(
    service: Service,
) -> None:
    expected = {
        "/pushes?since=0001-01-01T00:00%2B14:00": 400,
        "/pushes?until=9999-12-31T23:59-14:00": 400,
        "/preview?what=requeue&until=9999-12-31T23:59-14:00": 400,
        f"/pushes/newer?than={'9' * 400}": 400,
        f"/pushes/newer?than={'9' * 25}": 400,
        "/pushes?after=given.-999999999999999999.1": 400,
        "/pushes?since=0001-01-01T00:00": 200,
        "/pushes?until=9999-12-31T23:59:59": 200,
    }
    assert {path: (await ask(service, "GET", path))[0] for path in expected} == expected


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/send", {"token": "abc", "title": "a\0b"}),
        ("/send", {"token": "a\0c", "title": "a"}),
        ("/act", {"what": "requeue", "id": str(UUID(int=1)), "frozen": LATER, "reason": "a\0b"}),
        ("/act", {"what": "requeue", "id": str(UUID(int=1)), "frozen": "9999-12-31T23:59-14:00"}),
    ],
)
async def test_what_no_column_can_hold_is_refused(service: Service, path: str, form: dict[str, str]) -> None:
    status, text = await ask(service, "POST", path, data=form)
    assert (status, "The database cannot be read" in text) == (400, False)


async def test_all_pushes_that_wait_for_a_far_time_can_be_cancelled(rows: Rows, service: Service) -> None:
    await rows.query(
        "insert into push_notifications (title, device_token, next_attempt_at) "
        "select 't', 't', '200000-01-01' from generate_series(1, 1200) returning id"
    )
    asked = {"what": "cancel", "status": "pending", "frozen": LATER, "reason": "x"}
    status, text = await ask(service, "POST", "/act", data=asked)
    assert status == 303, text
    runs = service._page._runs._runs
    await until(lambda: all(run.progress.is_over for run in runs.values()))
    (left,) = await rows.query("select count(*) as number from push_notifications where status = 'pending'")
    assert left["number"] == 0


async def test_the_record_of_a_requeue_of_everything_is_a_small_page(rows: Rows, service: Service) -> None:
    await rows.query(
        "insert into push_listener.actions (who, what, filter, affected, ids, run) "
        "select 'anna', 'requeue', '{}', 500, array(select gen_random_uuid() from generate_series(1, 500)), "
        "gen_random_uuid() from generate_series(1, 50) returning id"
    )
    _, text = await ask(service, "GET", "/actions")
    assert "all pushes" in text
    assert len(text) < 100_000


async def test_a_huge_row_is_a_small_page(rows: Rows, service: Service) -> None:
    push = await rows.add(
        title="t", body="b" * 20_000_000, device_token="t", status="sent", last_error="no " * 2_000_000
    )
    for method, path in (("GET", f"/pushes/{push}"), ("POST", f"/pushes/{push}/reveal")):
        status, text = await ask(service, method, path)
        assert (status, "cut" in text) == (200, True)
        assert len(text) < 100_000
