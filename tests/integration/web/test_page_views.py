"""The views of the page over HTTP, with sample data behind them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from uuid import UUID

import pytest
from aiohttp import ClientSession

from listener.operating.filters import Filter
from listener.operating.records import CodeGroup, Count, Progress, Story, WorkerLine
from tests.support.page import NOBODY, PAGES, READER, FakePage, FakeRun, now, push_id, story


@pytest.fixture
async def browser() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


class Markup(HTMLParser):
    """The ids, links and unclosed elements of a page."""

    VOID = frozenset({"meta", "link", "input", "br", "img", "path", "circle"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [
            values[name] or "" for name in ("href", "action", "src", "hx-get", "hx-post") if name in values
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def get(browser: ClientSession, page: FakePage, path: str, **headers: str) -> tuple[int, str]:
    async with page.serve() as url, browser.get(url + path, headers=headers, allow_redirects=False) as answer:
        return answer.status, await answer.text()


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_is_well_formed_and_leads_nowhere_else(browser: ClientSession, name: str) -> None:
    page = FakePage(prefix="/push")
    page.runs.known[push_id(999)] = FakeRun(Progress(714, 3, False))
    status, text = await get(browser, page, PAGES[name])
    assert status == {"missing": 404, "login": 401}.get(name, 200)
    found = Markup(text)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert [link for link in found.links if not link.startswith(("/push/", "#"))] == []


@pytest.mark.parametrize("name", PAGES)
async def test_what_others_wrote_is_text(browser: ClientSession, name: str) -> None:
    _, text = await get(browser, FakePage(), PAGES[name])
    assert "<img" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text


async def test_the_first_screen_stays_when_the_database_is_away(browser: ClientSession) -> None:
    page = FakePage()
    page.reading.is_away = True
    status, text = await get(browser, page, "/")
    assert status == 200
    assert "The database does not answer, so this is not known" in text


@pytest.mark.parametrize("path", ["/", "/pushes", "/pushes?status=dead", "/workers", "/actions"])
async def test_an_empty_page_says_what_to_do_next(browser: ClientSession, path: str) -> None:
    page = FakePage()
    page.reading.is_empty = True
    status, text = await get(browser, page, path)
    assert status == 200
    assert 'class="empty"' in text


async def test_one_that_reads_only_is_offered_no_action(browser: ClientSession) -> None:
    for path in ("/pushes", f"/pushes/{push_id(7)}", "/send"):
        _, text = await get(browser, FakePage(visitor=READER), path)
        assert not re.search(r"/preview|/reveal|action=\"/send\"", text)
    _, text = await get(browser, FakePage(visitor=NOBODY), "/login")
    assert "/pushes" not in text


async def test_the_list_asks_for_what_the_address_says(browser: ClientSession) -> None:
    page = FakePage()
    _, text = await get(
        browser, page, "/pushes?status=dead&code=UNREGISTERED&since=2026-01-31T12:00&after=50"
    )
    applied = Filter("dead", code="UNREGISTERED", since=datetime(2026, 1, 31, 12, tzinfo=UTC))
    assert page.reading.asked[0] == ("pushes", applied, "50")
    assert "after=100" in text
    assert "1,000+" in text


async def test_every_fault_of_a_filter_is_told(browser: ClientSession) -> None:
    status, text = await get(browser, FakePage(), "/pushes?status=lost&user=anna")
    assert status == 400
    assert "status must be one of" in text
    assert "user must be the UUID" in text


async def test_what_is_new_changes_cells_and_moves_nothing(browser: ClientSession) -> None:
    _, text = await get(browser, FakePage(), f"/pushes/newer?than=1&ids={push_id(3)},nonsense")
    assert "12 new" in text
    assert f'hx-target="#state-{push_id(3)}"' in text
    assert "<tr" not in text
    _, later = await get(browser, FakePage(), f"/pushes/newer?on=1&ids={push_id(3)}")
    assert "new:" not in later


@pytest.mark.parametrize(
    ("sought", "leads_to"),
    [
        (str(push_id(3)), f"/pushes/{push_id(3)}"),
        (f" {push_id(300)} ", f"/pushes?user={push_id(300)}"),
        ("unregistered", "/pushes?code=UNREGISTERED"),
        ("http_404", "/pushes?code=HTTP_404"),
    ],
)
async def test_what_is_pasted_is_found(browser: ClientSession, sought: str, leads_to: str) -> None:
    async with (
        FakePage().serve() as url,
        browser.get(f"{url}/find", params={"q": sought}, allow_redirects=False) as answer,
    ):
        assert answer.status == 303
        assert answer.headers["Location"] == leads_to


@pytest.mark.parametrize("part", ["aa276b2f", "1a2b3c4d", "\u20266f6a1c11", "6f1e0c9a-7a64"])
async def test_a_part_of_an_id_is_called_so(browser: ClientSession, part: str) -> None:
    """Lists show the last eight digits."""
    status, text = await get(browser, FakePage(), f"/find?q={part}")
    assert status == 400
    assert "That is a part of an id" in text


async def test_an_id_of_nothing_leads_nowhere(browser: ClientSession) -> None:
    """A push that was deleted has an id that looks like that of a user."""
    page = FakePage()
    page.reading.is_empty = True
    status, text = await get(browser, page, f"/find?q={push_id(300)}")
    assert status == 404
    assert "RETENTION" in text


@pytest.mark.parametrize("status", ["sent", "delivered", "processing"])
async def test_a_list_without_actions_has_no_boxes_to_tick(browser: ClientSession, status: str) -> None:
    _, text = await get(browser, FakePage(), f"/pushes?status={status}")
    assert "All that match" not in text
    assert "checkbox" not in text
    assert f'id="state-{push_id(0)}"' in text  # it changes in place all the same


@pytest.mark.parametrize(("code", "links"), [("", 0), ("two words", 0), ("UNREGISTERED", 1)])
async def test_what_needs_a_person_is_linked_only_if_a_filter_finds_it(
    browser: ClientSession, code: str, links: int
) -> None:
    page = FakePage()

    async def codes() -> list[CodeGroup]:
        return [CodeGroup("dead", code, Count(3, True), now())]

    page.reading.codes = codes  # type: ignore[method-assign]
    _, text = await get(browser, page, "/needs")
    assert len(re.findall(r'<a href="/pushes[^"]*">3', text)) == links


@pytest.mark.parametrize(
    "path",
    [
        "/actions",
        "/pushes?since=2026-11-28T00:00:00%2B00:00",
        "/preview?what=requeue&since=2026-11-28T00:00:00%2B00:00",
    ],
)
async def test_the_time_of_a_condition_is_one_for_the_zone_of_the_browser(
    browser: ClientSession, path: str
) -> None:
    _, text = await get(browser, FakePage(), path)
    assert re.search(r'since (<b>)?<time datetime="2026-11-28T00:00:00\+00:00"', text)


async def test_the_list_asks_for_what_is_newer_than_what_it_shows(browser: ClientSession) -> None:
    page = FakePage()
    await get(browser, page, f"/pushes/newer?status=dead&than=7&ids={push_id(3)}")
    assert ("newer", Filter(status="dead"), "7", (push_id(3),)) in page.reading.asked


@pytest.mark.parametrize(("hours", "is_offered"), [(-1, False), (1, True)])
async def test_a_push_is_offered_for_requeue_until_its_time_is_over(
    browser: ClientSession, hours: int, is_offered: bool
) -> None:
    page, found = FakePage(), story(13, status="expired")

    async def told(wanted: UUID) -> Story:
        return replace(found, expires_at=now() + timedelta(hours=hours))

    page.reading.story = told  # type: ignore[method-assign]
    _, text = await get(browser, page, f"/pushes/{found.line.id}")
    assert ('data-do="requeue"' in text) == is_offered


async def test_ticked_pushes_are_requeued_by_name_unless_they_changed(browser: ClientSession) -> None:
    page = FakePage()
    values = [("what", "requeue"), ("frozen", "2026-01-31T12:00:00+00:00"), ("reason", " why ")]
    values += [("id", str(push_id(9))), ("id", str(push_id(23)))]
    async with page.serve() as url, browser.post(f"{url}/act", data=values, allow_redirects=False) as answer:
        assert answer.headers["Location"] == "/actions?what=requeue&changed=2&of=2"
    (what, ids, more), *rest = page.acting.done
    assert (what, ids, rest) == ("requeue", [push_id(9), push_id(23)], [])
    assert more == {"who": "anna", "reason": "why", "until": datetime(2026, 1, 31, 12, tzinfo=UTC)}


async def test_an_action_on_all_that_match_is_a_run_with_the_filter_frozen(browser: ClientSession) -> None:
    page = FakePage()
    values = {
        "what": "cancel",
        "frozen": "2026-01-31T12:00:00+00:00",
        "reason": "stop",
        "code": "UNAVAILABLE",
    }
    async with page.serve() as url, browser.post(f"{url}/act", data=values, allow_redirects=False) as answer:
        assert answer.headers["Location"] == f"/runs/{push_id(999)}"
    (run,) = page.runs.started
    await run.perform()
    applied, until = Filter(code="UNAVAILABLE"), datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert ("ids", applied, "cancel", until, None) in page.reading.asked
    (what, ids, more), *rest = page.acting.done
    assert (what, ids, rest) == ("cancel", [push_id(0), push_id(1)], [])
    assert (more["who"], more["reason"], more["filter"], more["run"]) == ("anna", "stop", applied, run.id)


@pytest.mark.parametrize(
    "wrong", [{"what": "delete"}, {"frozen": "yesterday"}, {"frozen": "2026-01-31T12:00"}]
)
async def test_an_action_that_no_preview_made_is_refused(
    browser: ClientSession, wrong: dict[str, str]
) -> None:
    page = FakePage()
    values = {"what": "requeue", "frozen": "2026-01-31T12:00:00+00:00", **wrong}
    async with page.serve() as url, browser.post(f"{url}/act", data=values, allow_redirects=False) as answer:
        assert answer.status == 400
    assert (page.acting.done, page.runs.started) == ([], [])


async def test_a_run_of_another_process_that_does_nothing_more_is_said_to_have_stopped(
    browser: ClientSession,
) -> None:
    page = FakePage()
    _, text = await get(browser, page, f"/runs/{push_id(999)}")
    assert "at work in another process" in text
    assert "every 5s" in text
    page.reading.run_age = timedelta(minutes=2)
    _, text = await get(browser, page, f"/runs/{push_id(999)}")
    assert "has stopped" in text
    assert "hx-trigger" not in text


async def test_an_action_on_everything_says_so_and_shows_a_few_of_many_ids(browser: ClientSession) -> None:
    page = FakePage()
    _, text = await get(browser, page, "/actions")
    row = text[text.index('id="action-4"') :]
    assert "all pushes" in row[: row.index("</tr>")]
    row = text[text.index('id="action-3"') :]
    row = row[: row.index("</tr>")]
    assert row.count('href="/pushes/') == 20
    assert "500 ids" in row
    assert "and 480 more" in row


async def test_a_preview_leaves_out_what_the_action_cannot_change(browser: ClientSession) -> None:
    dead, sent = push_id(9), push_id(0)
    _, text = await get(browser, FakePage(), f"/preview?what=requeue&id={dead}&id={sent}")
    assert f'value="{dead}"' in text
    assert f'value="{sent}"' not in text
    assert "1 of the ticked pushes is left out" in text


async def test_a_payload_shows_only_once_it_is_revealed(browser: ClientSession) -> None:
    page = FakePage()
    path = f"/pushes/{push_id(7)}"
    async with page.serve() as url:
        async with browser.get(url + path) as answer:
            assert "It arrives on Monday" not in await answer.text()
        async with browser.post(f"{url}{path}/reveal") as answer:
            whole = await answer.text()
        async with browser.post(f"{url}{path}/reveal", headers={"HX-Request": "true"}) as answer:
            part = await answer.text()
    assert "It arrives on Monday" in whole
    assert "It arrives on Monday" in part
    assert "<html" not in part
    assert page.acting.done == [("reveal", push_id(7), "anna")] * 2


async def test_a_login_that_may_not_act_is_told_what_to_grant(browser: ClientSession) -> None:
    page = FakePage()
    page.acting.is_allowed = False
    async with page.serve() as url, browser.post(f"{url}/pushes/{push_id(7)}/reveal") as answer:
        assert answer.status == 403
        assert "grant push_listener_operator" in await answer.text()


async def test_a_test_push_goes_to_one_target_and_its_token_is_not_shown_again(
    browser: ClientSession,
) -> None:
    page = FakePage()
    both = {"token": "fake-token", "user": str(push_id(1)), "title": "Hello"}
    async with page.serve() as url:
        async with browser.post(f"{url}/send", data=both) as answer:
            assert answer.status == 400
            assert "fake-token" not in await answer.text()
        one = {"token": "fake-token", "title": "Hello", "body": "x"}
        async with browser.post(f"{url}/send", data=one, allow_redirects=False) as answer:
            assert answer.headers["Location"] == f"/pushes/{push_id(3)}"
    wanted = {"token": "fake-token", "user": None, "title": "Hello", "body": "x", "who": "anna"}
    assert page.acting.done == [("send", wanted)]


async def test_a_run_is_followed_and_stopped(browser: ClientSession) -> None:
    page = FakePage()
    page.runs.known[push_id(999)] = run = FakeRun(Progress(714, 3, False))
    path = f"/runs/{push_id(999)}"
    async with page.serve() as url:
        async with browser.get(f"{url}{path}/progress") as answer:
            assert "every 1s" in await answer.text()
        async with browser.post(f"{url}{path}/abort", allow_redirects=False) as answer:
            assert answer.status == 303
        run.progress = Progress(714, 3, True)
        async with browser.get(f"{url}{path}/progress") as answer:
            text = await answer.text()
    assert run.is_aborted
    assert "every 1s" not in text
    assert "stopped" in text


async def test_a_run_of_another_process_is_awaited_for_a_minute(browser: ClientSession) -> None:
    page, path = FakePage(), f"/runs/{push_id(300)}"
    async with page.serve() as url:
        async with browser.get(url + path) as answer:
            text = await answer.text()
            assert answer.status == 200
        assert "no batch yet" in text
        (poll,) = re.findall(r'hx-get="(/runs/[^"]+)"', text)
        long_ago = int((now() - timedelta(minutes=2)).timestamp())
        async with browser.get(url + re.sub(r"since=\d+", f"since={long_ago}", poll)) as answer:
            text = await answer.text()
    assert "hx-get" not in text
    assert "it changed nothing, or the address is wrong" in text


@pytest.mark.parametrize(
    ("minutes", "state", "goes_on"), [(0, "at work in another process", True), (2, "has stopped", False)]
)
async def test_a_run_of_another_process_is_followed_by_its_batches(
    browser: ClientSession, minutes: int, state: str, goes_on: bool
) -> None:
    page = FakePage()

    async def progress(run: UUID) -> tuple[int, datetime | None]:
        return 500, now() - timedelta(minutes=minutes)

    page.reading.run_progress = progress  # type: ignore[method-assign]
    _, text = await get(browser, page, f"/runs/{push_id(300)}")
    assert state in text
    assert ("hx-get" in text) == goes_on
    assert "abort" not in text


async def test_the_workers_that_hold_no_lock_are_not_called_unseen(browser: ClientSession) -> None:
    """With WAKEUP=sweep no worker holds one, and so Postgres cannot see whether it lives."""
    page = FakePage()
    own = page.sample().state.worker
    assert own is not None

    async def workers() -> list[WorkerLine]:
        none = Count(0, True)
        return [
            WorkerLine(n, "web", now(), None, False, False, none, is_guarded=False) for n in (own, own + 1)
        ]

    page.reading.workers = workers  # type: ignore[method-assign]
    _, text = await get(browser, page, "/workers/table")
    assert re.findall(r'class="status \w+"[^>]*>([^<]+)', text) == ["at work", "not known"]


async def test_the_stream_brings_the_parts_of_the_first_screen(browser: ClientSession) -> None:
    async with FakePage().serve() as url, browser.get(f"{url}/events") as answer:
        text = ""
        while "event: series" not in text:
            text += (await answer.content.readline()).decode()
    for part in ("#verdict", "#figures", "#latest"):
        assert f'hx-target="{part}"' in text
