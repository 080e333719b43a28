"""The page of a real service in a real Chromium: what a reader of it stumbles over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from playwright.async_api import expect

from listener.service import Service
from tests.support.browser import PHONE, chromium, tab
from tests.support.service import PATIENCE, Rows

expect.set_options(timeout=PATIENCE * 1000)


async def test_a_push_that_only_changed_is_not_called_new(rows: Rows, service: Service) -> None:
    """It is in the list, and its cells change in place."""
    push = await rows.add(title="t", status="sent", next_attempt_at=None)
    async with chromium() as browser, tab(browser, f"http://127.0.0.1:{service.port}/pushes") as page:
        await expect(page.locator(f"#state-{push}")).to_contain_text("sent")
        await rows.query("update push_notifications set status = 'delivered', updated_at = now()")
        await expect(page.locator(f"#state-{push}")).to_contain_text("delivered")
        assert await page.locator("#newer").inner_text() == ""


async def test_a_requeued_push_is_new_in_the_list_of_what_waits(rows: Rows, service: Service) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    first = await rows.add(title="t", device_token="t", next_attempt_at=later)
    old = await rows.add(title="t", device_token="t", status="dead", next_attempt_at=None)
    async with (
        chromium() as browser,
        tab(browser, f"http://127.0.0.1:{service.port}/pushes?status=pending") as page,
    ):
        await rows.query(
            "update push_notifications set status = 'pending', updated_at = now(), next_attempt_at = %(later)s "
            "where id = %(old)s",
            old=old,
            later=later,
        )
        await rows.query("update push_notifications set retry_count = 1 where id = %(first)s", first=first)
        await expect(page.locator(f"#tries-{first}")).to_have_text("1")  # the list has asked
        assert "1 new" in await page.locator("#newer").inner_text()


async def test_no_page_is_wider_than_a_phone(rows: Rows, service: Service) -> None:
    push = await rows.add(
        title="A" * 180, topic="a" * 180, status="dead", error_code="X" * 60, next_attempt_at=None
    )
    wide = []
    async with chromium() as browser:
        for path in ("/", "/pushes", "/pushes?status=dead", f"/pushes/{push}", f"/preview?what=requeue&id={push}",
                     "/workers", "/actions", "/send"):  # fmt: skip
            async with tab(browser, f"http://127.0.0.1:{service.port}{path}", width=PHONE) as page:
                if (await page.evaluate("document.documentElement.scrollWidth")) > PHONE:
                    wide.append(path)
    assert wide == []
