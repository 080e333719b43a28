"""Faults of the code of docs/javascript.md, in Chromium."""

from __future__ import annotations

import asyncio

from tests.integration.phones.test_browser import Site, site  # noqa: F401, TID251
from tests.support.service import Rows


async def test_one_record_that_cannot_be_cloned_takes_no_other_with_it(site: Site, rows: Rows) -> None:  # noqa: F811
    """``JSON.stringify`` takes a function, and a Proxy of Vue's; IndexedDB takes neither."""
    await site.sign_in()
    page = await site.open("/probe")
    await page.wait_for_function("telemetry.log('good')")
    await page.evaluate(
        "async () => { telemetry.log('bad', '', { retry: () => 1 }); telemetry.log('good'); await telemetry.flush(); }"
    )
    stored = await rows.query("select count(*) as n from telemetry_logs where type = 'good'")
    assert stored[0]["n"] >= 2


async def test_log_never_throws(site: Site) -> None:  # noqa: F811
    await site.sign_in()
    page = await site.open("/probe")
    await page.wait_for_function("telemetry.log('good')")
    assert (
        await page.evaluate("() => { const o = {}; o.o = o; return telemetry.log('bad', '', o); }") is False
    )


async def test_the_user_is_signed_out_though_the_store_is_broken(site: Site) -> None:  # noqa: F811
    """Safari: "Connection to Indexed Database server lost"."""
    await site.sign_in()
    page = await site.open()
    await site.called("register_device")
    await page.evaluate("IDBDatabase.prototype.transaction = () => { throw new DOMException('lost'); }")
    await page.get_by_role("button", name="Sign out").click()
    async with asyncio.timeout(10):
        await site.called("auth/logout")


async def test_a_missing_service_worker_leaves_the_sign_out_button(site: Site) -> None:  # noqa: F811
    """``await Push.start`` stands before the listeners in main.ts: what it raises leaves the page without buttons."""
    await site.sign_in()
    page = await site.context.new_page()
    await page.add_init_script(
        "navigator.serviceWorker.register = async () => { throw new TypeError('404'); }"
    )
    await page.goto(site.url + "/")
    await page.get_by_role("button", name="Sign out").click()
    async with asyncio.timeout(10):
        await site.called("auth/logout")
