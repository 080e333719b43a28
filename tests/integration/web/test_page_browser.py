"""The page of a real service in a real Chromium. ``tab`` fails a test whose page breaks the security policy.

To start a browser takes as long as most of these tests. They share one, and so an event loop, and each has a profile
of its own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, expect

from listener.emulator import Emulator
from listener.service import Service
from tests.support.browser import CONTRAST, DESK, PHONE, barriers, chromium, tab
from tests.support.postgres import Database
from tests.support.service import PATIENCE, Rows, rows_of, serving, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

NASTY = "<img src=x onerror=alert(1)> [red]\x1b[2J"
USER, OTHER = UUID(int=1), UUID(int=2)

# Playwright's own patience is 5 s.
expect.set_options(timeout=PATIENCE * 1000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def rows(database: Database) -> AsyncIterator[Rows]:
    async with rows_of(database.dsn) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator() as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def service(database: Database, emulator: Emulator) -> AsyncIterator[Service]:
    async with serving(settings_for(database.dsn, emulator)) as running:
        yield running


@asynccontextmanager
async def page_of(browser: Browser, service: Service, path: str = "/", **options: Any) -> AsyncIterator[Page]:
    """A page of the service."""
    async with tab(browser, f"http://127.0.0.1:{service.port}{path}", **options) as page:
        yield page


async def quickened(page: Page) -> None:
    """The page asks for news ten times as often as its HTML says."""

    async def quicken(route: Route) -> None:
        answer = await route.fetch()
        body = (await answer.text()).replace('hx-trigger="every 5s"', 'hx-trigger="every 500ms"')
        await route.fulfill(response=answer, body=body)

    await page.route("**/pushes*", quicken)


async def dead(rows: Rows, count: int, code: str, user: UUID = USER, title: str = "t") -> list[UUID]:
    """So many dead pushes to a user without devices: requeued, they die again, of another code."""
    return [
        await rows.add(
            user_id=user,
            title=title,
            status="dead",
            error_code=code,
            last_error="as FCM said",
            next_attempt_at=None,
        )
        for _ in range(count)
    ]


async def actions(rows: Rows) -> list[tuple[str, str, int]]:
    """Who has done what to how many."""
    found = await rows.query("select who, what, affected from push_listener.actions order by id")
    return [(row["who"], row["what"], row["affected"]) for row in found]


async def test_a_push_that_sql_inserts_appears_without_navigation(
    browser: Browser, rows: Rows, service: Service
) -> None:
    async with page_of(browser, service) as page:
        await expect(page.locator("#latest")).to_contain_text("No push yet")
        await expect(page.locator("[data-contact]")).to_have_text("Live")
        navigated = False

        def note(_: object) -> None:
            nonlocal navigated
            navigated = True

        page.on("framenavigated", note)
        push_id = await rows.add(device_token="phone-1", title=NASTY)
        await expect(page.locator(f"#live-{push_id}")).to_contain_text("sent")
        await expect(page.locator(f"#live-{push_id}")).to_contain_text("<img src=x onerror=alert(1)> [red]")
        await expect(page.locator("#verdict .verdict")).to_contain_text("Sending")
        assert not navigated
        assert await page.locator("#latest img").count() == 0
    # The first screen is live also if a part of its script comes late.
    async with page_of(browser, service, "/workers") as page:

        async def late(route: Route) -> None:
            await asyncio.sleep(1.0)
            await route.continue_()

        await page.route("**/hx-sse.min.js", late)
        await page.goto(f"http://127.0.0.1:{service.port}/")
        await expect(page.locator("[data-contact]")).to_have_text("Live")


async def test_a_dead_push_is_requeued_by_keyboard_alone(
    browser: Browser, rows: Rows, service: Service
) -> None:
    (push_id,) = await dead(rows, 1, "UNREGISTERED")
    async with page_of(browser, service) as page:
        await page.keyboard.press("g")
        await page.keyboard.press("p")
        await page.wait_for_url("**/pushes")
        await page.keyboard.press("j")
        await page.keyboard.press("x")
        await expect(page.locator(f"#row-{push_id} input")).to_be_checked()
        await page.keyboard.press("r")
        await page.wait_for_url("**/preview?*")
        # The browser gives the field its focus with the first frame that it draws, which may come after "load".
        await expect(page.get_by_label("Reason")).to_be_focused()
        await page.keyboard.type("the token is back")
        await page.keyboard.press("Enter")
        await page.wait_for_url(lambda url: "/preview" not in url)
    assert await actions(rows) == [("local", "requeue", 1)]
    reason = await rows.query("select reason, ids from push_listener.actions")
    assert [(row["reason"], row["ids"]) for row in reason] == [("the token is back", [push_id])]
    row = await rows.get(push_id)
    assert (row["status"], row["error_code"]) != ("dead", "UNREGISTERED")


async def test_what_matches_a_filter_is_requeued_and_nothing_else(
    browser: Browser, rows: Rows, service: Service
) -> None:
    matching = await dead(rows, 3, "TOKEN_LOSS", USER)
    others = [*await dead(rows, 2, "TOKEN_LOSS", OTHER), *await dead(rows, 2, "UNREGISTERED", USER)]
    async with page_of(browser, service, f"/pushes?status=dead&code=TOKEN_LOSS&user={USER}") as page:
        await expect(page.locator(".count")).to_have_text("3 match")
        await page.get_by_role("link", name="Requeue all…").click()
        await expect(page.locator(".preview .figures")).to_contain_text("3 pushes")
        late = await dead(rows, 1, "TOKEN_LOSS", USER)  # after the preview
        await page.get_by_label("Reason").fill("the project was wrong")
        await page.get_by_role("button", name="Requeue 3 pushes").click()
        await page.wait_for_url("**/runs/*")
        await expect(page.locator("#run")).to_contain_text("3 pushes")
    assert await actions(rows) == [("local", "requeue", 3)]
    logged = (await rows.query("select ids, filter, reason from push_listener.actions"))[0]
    assert set(logged["ids"]) == set(matching)
    assert logged["filter"]["code"] == "TOKEN_LOSS"
    assert logged["reason"] == "the project was wrong"
    for push_id in (*others, *late):
        row = await rows.get(push_id)
        assert (row["status"], row["last_error"]) == ("dead", "as FCM said")


async def test_ticked_boxes_survive_what_happens_meanwhile(
    browser: Browser, rows: Rows, service: Service
) -> None:
    ticked = await dead(rows, 2, "UNREGISTERED")
    async with page_of(browser, service, "/pushes", prepare=quickened) as page:
        for push_id in ticked:
            await page.locator(f"#row-{push_id} input").check()
        order = await page.locator("tr[data-row]").evaluate_all("rows => rows.map(row => row.id)")
        await rows.add_many(20)
        # The polling of the page tells of the new ones, and moves nothing.
        await expect(page.locator("#newer")).to_contain_text("20 new")
        await rows.add_many(5)
        await expect(page.locator("#newer")).to_contain_text("25 new")
        for push_id in ticked:
            await expect(page.locator(f"#row-{push_id} input")).to_be_checked()
        assert await page.locator("tr[data-row]").evaluate_all("rows => rows.map(row => row.id)") == order


async def test_a_test_push_is_sent(
    browser: Browser, rows: Rows, emulator: Emulator, service: Service
) -> None:
    async with page_of(browser, service, "/send") as page:
        await page.get_by_label("token", exact=False).first.fill("my-own-phone")
        await page.get_by_label("Title").fill("Hello")
        await page.get_by_role("main").get_by_role("button").click()
        await page.wait_for_url("**/pushes/*")
        await rows.over()
        await page.reload()  # a story does not change by itself
        await expect(page.locator("main")).to_contain_text("FCM accepted it")
    assert [record.message and record.message["token"] for record in emulator.received] == ["my-own-phone"]
    assert [(who, what) for who, what, _ in await actions(rows)] == [("local", "send")]


async def test_the_page_says_that_the_database_is_away_and_when_it_is_back(
    browser: Browser, database: Database, rows: Rows, service: Service
) -> None:
    async with page_of(browser, service) as page:
        await expect(page.locator("#verdict .verdict")).to_contain_text("Sending")
        await asyncio.to_thread(database.server.stop)
        await expect(page.locator("#verdict .verdict")).to_have_attribute("data-level", "trouble")
        await expect(page.locator("#verdict .verdict")).to_contain_text("database")
        await asyncio.to_thread(database.server.start)
        await expect(page.locator("#verdict .verdict")).to_have_attribute("data-level", "ok")


async def test_the_page_of_an_idle_process_shows_the_work_of_another(
    browser: Browser, database: Database, rows: Rows, emulator: Emulator, service: Service
) -> None:
    """The first process is paused by a network of its own that refuses it; the second one sends."""
    async with serving(settings_for(database.dsn, emulator, worker_name="other")):
        async with page_of(browser, service, "/workers") as page:
            await expect(page.locator("main")).to_contain_text("other")
        async with page_of(browser, service) as page:
            await expect(page.locator("[data-contact]")).to_have_text("Live")
            await rows.add_many(5)
            await expect(page.locator("#latest tr[data-row]")).to_have_count(5)
            for number in range(5):
                await expect(page.locator("#latest tr[data-row]").nth(number)).to_contain_text("sent")


PATHS = ["/", "/pushes", "/pushes?status=dead", "/workers", "/actions", "/send"]


async def test_no_page_has_barriers(browser: Browser, rows: Rows, service: Service) -> None:
    (push_id,) = await dead(rows, 1, "UNREGISTERED", title=NASTY)
    await rows.add_many(3)
    await rows.over(*[each for each in await rows.all() if each != push_id])
    paths = [
        *PATHS,
        f"/pushes/{push_id}",
        f"/preview?what=requeue&id={push_id}",
        "/preview?what=requeue&status=dead",
    ]
    async with page_of(browser, service, width=DESK, bypass_csp=True) as page:
        for path in paths:
            await page.goto(f"http://127.0.0.1:{service.port}{path}")
            assert not await is_wide(page), f"{path} is wider than the window"
            assert await barriers(page) == [], path
            # Four fifths of the CPU time goes to contrast, which is all that depends on the scheme. It does not depend
            # on the width: no rule for a narrow window sets a colour.
            await page.emulate_media(color_scheme="dark")
            assert await barriers(page, only=CONTRAST) == [], f"{path} in the dark"
            await page.emulate_media(color_scheme="light")
            await page.set_viewport_size({"width": PHONE, "height": 900})
            assert not await is_wide(page), f"{path} is wider than a phone"
            assert await barriers(page, without=CONTRAST) == [], f"{path} on a phone"
            await page.set_viewport_size({"width": DESK, "height": 900})


async def is_wide(page: Page) -> bool:
    """Whether a reader has to scroll to the side."""
    return bool(
        await page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    )


async def test_no_page_breaks_the_policy_or_is_wider_than_a_phone(
    browser: Browser, rows: Rows, service: Service
) -> None:
    (push_id,) = await dead(rows, 1, "UNREGISTERED", title=NASTY)
    long = await rows.add(
        title="A" * 180, topic="a" * 180, status="dead", error_code="X" * 60, next_attempt_at=None
    )
    paths = [
        *PATHS,
        "/login",
        f"/pushes/{push_id}",
        f"/preview?what=requeue&id={push_id}",
        "/pushes?status=nonsense",
        f"/pushes/{long}",
        f"/preview?what=requeue&id={long}",
    ]
    wide = []
    async with page_of(browser, service, width=PHONE) as page:
        for path in paths:
            await page.goto(f"http://127.0.0.1:{service.port}{path}")
            if await is_wide(page):
                wide.append(path)
    assert wide == []


async def test_a_person_signs_in_acts_under_the_own_name_and_signs_out(
    browser: Browser, database: Database, rows: Rows, emulator: Emulator
) -> None:
    (push_id,) = await dead(rows, 1, "UNREGISTERED")
    tokens = {"page_token": "token-that-only-reads", "action_tokens": "anna:the-own-token-of-anna"}
    async with (
        serving(settings_for(database.dsn, emulator, **tokens)) as service,
        page_of(browser, service, f"/pushes/{push_id}") as page,
    ):
        await page.wait_for_url("**/login**")
        await page.get_by_label("Token").fill("wrong-token-of-anna")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_be_visible()
        await page.get_by_label("Token").fill("token-that-only-reads")
        await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_url(f"**/pushes/{push_id}")
        await expect(page.get_by_role("link", name="Requeue…")).to_have_count(0)
        await page.get_by_role("button", name="Sign out").click()
        await page.wait_for_url("**/login**")
        await page.get_by_label("Token").fill("the-own-token-of-anna")
        await page.get_by_role("button", name="Sign in").click()
        await page.goto(f"http://127.0.0.1:{service.port}/pushes/{push_id}")
        await page.get_by_role("link", name="Requeue…").click()
        await page.get_by_role("button", name="Requeue 1 push").click()
        await page.wait_for_url(lambda url: "/preview" not in url)
        cookies = await page.context.cookies()
        assert cookies
        assert all(cookie["httpOnly"] and cookie["sameSite"] == "Strict" for cookie in cookies)
        assert all("token" not in str(cookie["value"]) for cookie in cookies)
    assert await actions(rows) == [("anna", "requeue", 1)]


async def test_a_push_that_only_changed_is_not_called_newer_and_a_requeued_one_is(
    browser: Browser, rows: Rows, service: Service
) -> None:
    """The first is in the list, and its cells change in place. The second is new in the list of what waits."""
    push = await rows.add(title="t", status="sent", next_attempt_at=None)
    async with page_of(browser, service, "/pushes", prepare=quickened) as page:
        await expect(page.locator(f"#state-{push}")).to_contain_text("sent")
        await rows.query("update push_notifications set status = 'delivered', updated_at = now()")
        await expect(page.locator(f"#state-{push}")).to_contain_text("delivered")
        assert await page.locator("#newer").inner_text() == ""
    later = datetime.now(UTC) + timedelta(hours=1)
    first = await rows.add(title="t", device_token="t", next_attempt_at=later)
    old = await rows.add(title="t", device_token="t", status="dead", next_attempt_at=None)
    async with page_of(browser, service, "/pushes?status=pending", prepare=quickened) as page:
        await rows.query(
            "update push_notifications set status = 'pending', updated_at = now(), next_attempt_at = %(later)s "
            "where id = %(old)s",
            old=old,
            later=later,
        )
        await rows.query("update push_notifications set retry_count = 1 where id = %(first)s", first=first)
        await expect(page.locator(f"#tries-{first}")).to_have_text("1")  # the list has asked
        await expect(page.locator("#newer")).to_contain_text("1 newer")


async def test_a_story_goes_on_while_it_is_read_and_a_payload_that_is_asked_for_stays(
    browser: Browser, rows: Rows, service: Service
) -> None:
    push_id = await rows.add(
        device_token="secret-token-of-a-phone",
        title="t",
        body="the text",
        next_attempt_at=datetime.now(UTC) + timedelta(hours=1),
    )
    async with page_of(browser, service, f"/pushes/{push_id}") as page:
        await expect(page.locator("#story-head .status")).to_have_text("pending")
        assert "the text" not in await page.content()
        assert "secret-token" not in await page.content()
        await page.get_by_role("button", name="Reveal").click()
        await expect(page.locator("#payload")).to_contain_text("the text")
        assert await actions(rows) == [("local", "reveal", 1)]
        await rows.query("update push_notifications set next_attempt_at = now()")
        await expect(page.locator("#story-head .status")).to_have_text("sent")
        await expect(page.locator("#moments")).to_contain_text("accepted")
        await expect(page.locator("#story-poll")).not_to_have_attribute("hx-get", re.compile("."))
        await expect(page.locator("#payload")).to_contain_text("the text")
