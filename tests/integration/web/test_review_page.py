"""What the page makes of odd requests and odd rows, and what it costs the process that sends."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from aiohttp import ClientSession

from listener.operating.acting import Acting, Run
from listener.operating.filters import Filter, FilterFault
from listener.service import Service
from listener.web.page.runs import Runs
from tests.support.page_server import ACTION_TOKEN, PAGE_TOKEN, served
from tests.support.service import Rows, until

LATER = "2099-01-01T00:00:00+00:00"


async def ask(
    service: Service, method: str, path: str, headers: dict[str, str] | None = None, **options: Any
) -> tuple[int, str]:
    given = {"Origin": f"http://127.0.0.1:{service.port}", "Accept": "text/html", **(headers or {})}
    async with (
        ClientSession() as http,
        http.request(
            method, f"http://127.0.0.1:{service.port}{path}", headers=given, allow_redirects=False, **options
        ) as answer,
    ):
        return answer.status, await answer.text()


# --- odd requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/pushes?since=0001-01-01T00:00%2B14:00",
        "/pushes?until=9999-12-31T23:59-14:00",
        "/preview?what=requeue&until=9999-12-31T23:59-14:00",
        f"/pushes/newer?than={'9' * 400}",
        f"/pushes/newer?than={'9' * 25}",
        "/pushes?after=given.-999999999999999999.1",
    ],
)
async def test_an_odd_address_is_the_readers_mistake(service: Service, path: str) -> None:
    status, text = await ask(service, "GET", path)
    assert status in (200, 400), text[-300:]


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/send", {"token": "abc", "title": "a\0b"}),
        ("/send", {"token": "a\0c", "title": "a"}),
        ("/act", {"what": "requeue", "id": str(UUID(int=1)), "frozen": LATER, "reason": "a\0b"}),
    ],
)
async def test_a_nul_in_a_form_is_not_a_database_that_is_away(
    service: Service, path: str, form: dict[str, str]
) -> None:
    status, text = await ask(service, "POST", path, data=form)
    assert "The database cannot be read" not in text
    assert status in (200, 303, 400)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", b"token=\xff"),
        ("application/x-www-form-urlencoded; charset=nonsense", b"token=a"),
        ("multipart/form-data; boundary=x", b"--x\r\nfoo\r\n\r\n--x--"),
        ("multipart/form-data", b"token=a"),
    ],
)
async def test_a_broken_form_of_a_stranger_is_no_fault_of_the_page(
    service: Service, kind: str, body: bytes
) -> None:
    status, _ = await ask(service, "POST", "/login", {"Content-Type": kind}, data=body)
    assert status < 500


# --- who may ------------------------------------------------------------------------------------------------------


async def test_strangers_cannot_keep_out_a_right_token() -> None:
    async with served(
        access={"patience": 3600.0, "most": 2}, page_token=PAGE_TOKEN, action_tokens=f"anna:{ACTION_TOKEN}"
    ) as page:
        wrong = [
            asyncio.create_task(page.ask("GET", "/pushes", {"Authorization": f"Bearer {n}"}))
            for n in range(2)
        ]
        await until(lambda: page.page is not None and page.page._access._answering == 2)
        answer = await page.ask("GET", "/pushes", {"Authorization": f"Bearer {PAGE_TOKEN}"})
        for task in wrong:
            task.cancel()
        await asyncio.gather(*wrong, return_exceptions=True)
        assert answer.status == 200


async def test_an_open_page_answers_no_proxy(service: Service) -> None:
    """docs/page.md says so. nginx as it comes names the upstream in Host, speaks HTTP/1.0 and adds no header."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    host = b"127.0.0.1:%d" % (service.port or 0)
    # What curl sends to https://pushes.example/act through "proxy_pass http://127.0.0.1:PORT".
    form = b"what=requeue&reason=x&frozen=2099-01-01T00:00:00%2B00:00"
    writer.write(
        b"POST /act HTTP/1.0\r\nHost: " + host + b"\r\nConnection: close\r\nAuthorization: Bearer x\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n" % len(form) + form
    )
    answer = await reader.read()
    writer.close()
    assert answer.split()[1] == b"403"


@pytest.mark.parametrize(("prefix", "path"), [("/push", ""), ("", "/nothing"), ("", "/act")])
async def test_every_answer_has_the_headers(prefix: str, path: str) -> None:
    async with served(path_prefix=prefix) as page:
        method = "DELETE" if path == "/act" else "GET"
        answer = await page.ask(method, path)
        assert "Content-Security-Policy" in answer.headers
        assert answer.headers.get("Cache-Control") == "no-store"


# --- runs ---------------------------------------------------------------------------------------------------------


async def test_a_run_that_a_fault_has_ended_does_not_look_done() -> None:
    async def ids(after: str | None) -> tuple[list[UUID], str | None]:
        raise FilterFault(["after is not a place in this list"])

    runs = Runs()
    run = Run(
        Acting(None),  # type: ignore[arg-type]
        ids,
        what="requeue",
        who="anna",
        reason="why",
        filter=Filter(),
        until=None,  # type: ignore[arg-type]
    )
    runs.start(run)
    await until(lambda: run.progress.is_over)
    await asyncio.sleep(0)
    await runs.close()
    assert runs.fault(run.id) is not None


async def test_all_pushes_that_wait_for_a_far_time_can_be_cancelled(rows: Rows, service: Service) -> None:
    await rows.query(
        "insert into push_notifications (title, device_token, next_attempt_at) "
        "select 't', 't', '200000-01-01' from generate_series(1, 1200) returning id"
    )
    status, text = await ask(
        service, "POST", "/act", data={"what": "cancel", "status": "pending", "frozen": LATER, "reason": "x"}
    )
    assert status == 303, text
    runs = service._page._runs._runs
    await until(lambda: all(run.progress.is_over for run in runs.values()))
    (left,) = await rows.query("select count(*) as number from push_notifications where status = 'pending'")
    assert left["number"] == 0


# --- what it costs ------------------------------------------------------------------------------------------------


async def test_the_record_of_a_large_requeue_of_everything_is_a_small_page(
    rows: Rows, service: Service
) -> None:
    """Without a condition the filter is {}: then each batch shows its 500 ids."""
    await rows.query(
        "insert into push_listener.actions (who, what, filter, affected, ids, run) "
        "select 'anna', 'requeue', '{}', 500, array(select gen_random_uuid() from generate_series(1, 500)), "
        "gen_random_uuid() from generate_series(1, 50) returning id"
    )
    _, text = await ask(service, "GET", "/actions")
    assert len(text) < 500_000


async def test_a_reveal_of_a_huge_row_is_bounded(rows: Rows, service: Service) -> None:
    push = await rows.add(
        title="t", body="b" * 20_000_000, device_token="t", status="dead", error_code="PAYLOAD"
    )
    _, text = await ask(service, "POST", f"/pushes/{push}/reveal")
    assert len(text) < 1_000_000


async def test_a_story_of_a_huge_row_is_bounded(rows: Rows, service: Service) -> None:
    push = await rows.add(
        title="t", device_token="t", status="sent", error_code="X" * 5_000_000, last_error="y" * 5_000_000
    )
    _, text = await ask(service, "GET", f"/pushes/{push}")
    assert len(text) < 1_000_000


async def test_a_cookie_is_worth_nothing_after_signing_out() -> None:
    async with served(page_token=PAGE_TOKEN) as page:
        origin = {"Origin": f"http://127.0.0.1:{page.port}"}
        answer = await page.ask("POST", "/login", origin, data={"token": PAGE_TOKEN})
        cookie = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}
        await page.ask("POST", "/logout", origin, cookie)
        assert (await page.ask("GET", "/pushes", cookie)).status != 200
