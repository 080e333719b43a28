"""The code of docs/javascript.md in a real Chromium, with Firebase's SDK, supabase-js, a service worker and pushes.

Google's servers are pretended, and so is the subscription, for which Chromium would ask Google.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, BrowserContext, CDPSession, Page, Route, expect

from tests.support import rest, typescript_tools
from tests.support.browser import chromium
from tests.support.postgres import Database
from tests.support.rest import RestServer
from tests.support.servers import forget_proxies
from tests.support.service import PATIENCE, Rows, rows_of, until

# They share one browser, and so an event loop; each has a profile of its own.
pytestmark = pytest.mark.asyncio(loop_scope="module")

ANN = UUID("aaaaaaaa-0000-4000-8000-00000000000a")
FID = "dTnB3Zx8QhGkPq1WvYcR0s"

_PAGE = """<!doctype html><title>An app</title>
<ul id="pushes"></ul><button id="enable">Tell me</button><button id="sign-out">Sign out</button>
<script type="module" src="/main.js"></script>"""

_SUPABASE = "http://supabase.of.the.tests"

_CONFIG = """
export const supabaseUrl = %s;
export const supabaseKey = %s;
export const vapidKey = 'a-key';
export const firebaseConfig = { apiKey: 'k', appId: '1:2:web:3', messagingSenderId: '2', projectId: 'p' };
"""

# Chromium without Google's services cannot subscribe.
_SUBSCRIBED = """
PushManager.prototype.getSubscription = async () =>
  ({ endpoint: 'https://push.example/1', getKey: () => new Uint8Array(16).buffer });
"""

# What the pages use is put where the test reaches it.
_PROBE = """
import { createClient } from '@supabase/supabase-js';
import { supabaseKey, supabaseUrl } from './config';
import * as receipts from './receipts';
import * as store from './store';
import { Telemetry } from './telemetry';
const telemetry = new Telemetry(createClient(supabaseUrl, supabaseKey));
Object.assign(window, { probe: { ...receipts, ...store }, telemetry });
"""

_FILL = """
async () => {
  for (let n = 0; n < 101; n++) {
    telemetry.log('offline');
    await telemetry.freeze();
  }
  const db = await probe.store();
  await db.put('session', { userId: 'u', accessToken: 't', expiresAt: 1 }, 'now');
  await db.put('device', 'd', 'now');
  const tx = db.transaction('receipts', 'readwrite');
  for (const id of ['first', 'second', ...Array(498).fill('later')]) void tx.store.add({ push_id: id, user_id: 'u' });
  await tx.done;
  await probe.record('last', 'delivered');
  for (let n = 0; n <= 200; n++) await probe.isFirst(String(n));
  const [{ push_id: oldest }] = await db.getAll('receipts', null, 1);
  const [batches, receipts, shown] = await Promise.all(['batches', 'receipts', 'shown'].map((name) => db.count(name)));
  return { batches, dropped: telemetry.dropped, receipts, oldest, shown };
}
"""

# As Safari says it: "Connection to Indexed Database server lost".
_LOSE_THE_STORE = """
() => {
  const { transaction } = IDBDatabase.prototype;
  IDBDatabase.prototype.transaction = function (...names) {
    if (this.name === 'push-listener') throw new DOMException('lost');
    return transaction.apply(this, names);
  };
}
"""

_FAIL_TO_OPEN_ONCE = """
async () => {
  await new Promise((resolve) => {
    indexedDB.open('push-listener', 2).onsuccess = ({ target }) => { target.result.close(); resolve(); };
  });
  const first = await probe.store().catch((error) => error.name);
  await new Promise((resolve) => { indexedDB.deleteDatabase('push-listener').onsuccess = resolve; });
  return [first, (await probe.store()).version];
}
"""

# Two tabs may add at once, and each deletes what is too much after that.
_TOO_MANY_RECEIPTS = """
async (user) => {
  const tx = (await probe.store()).transaction('receipts', 'readwrite');
  const receipt = { push_id: crypto.randomUUID(), device_token: 'd', status: 'opened', at: new Date().toISOString() };
  for (let n = 0; n < 501; n++) void tx.store.add({ ...receipt, user_id: user });
  await tx.done;
}
"""

_SIGN_IN = """
([key, token, user, seconds]) => localStorage.setItem(key, JSON.stringify({
  access_token: token, refresh_token: 'single-use', token_type: 'bearer', expires_in: seconds,
  expires_at: Math.floor(Date.now() / 1000) + seconds, user: { id: user, aud: 'authenticated' },
}))
"""

_EXPIRE = """
async (name) => {
  const db = await new Promise((resolve) => {
    const opening = indexedDB.open('push-listener');
    opening.onsuccess = () => resolve(opening.result);
  });
  const sessions = db.transaction('session', 'readwrite').objectStore('session');
  sessions.get('now').onsuccess = ({ target }) => sessions.put({ ...target.result, expiresAt: 1 }, 'now');
  await new Promise((resolve) => { sessions.transaction.oncomplete = resolve; });
}
"""

# There is no way to click on a notification: the event is made here, and its promise waited for.
_CLICK = """
async (tag) => {
  const [notification] = await self.registration.getNotifications({ tag });
  const event = new NotificationEvent('notificationclick', { notification });
  const work = [];
  event.waitUntil = (promise) => work.push(promise);
  self.clients.openWindow = async (url) => { self.openedUrl = url; };
  self.dispatchEvent(event);
  await Promise.all(work);
  return self.openedUrl;
}
"""

_WAITING = """
new Promise((resolve) => {
  indexedDB.open('push-listener').onsuccess = ({ target: { result: db } }) => {
    db.transaction('receipts').objectStore('receipts').count().onsuccess = ({ target }) => resolve(target.result);
  };
})
"""

_SHOWN = "self.registration.getNotifications().then((all) => all.map(({ title, tag }) => [title, tag]))"


@dataclass
class Site:
    """An application of a reader of the page, in a browser in which Ann may be signed in."""

    url: str
    server: RestServer
    context: BrowserContext
    keeper: CDPSession
    google: list[tuple[str, list[str]]] = field(default_factory=list)
    """Requests to FCM's registrations, each with the functions that had been called before it."""
    answered: int = 0
    """How many of them have been answered."""

    async def open(self, path: str = "/") -> Page:
        page = await self.context.new_page()
        await page.goto(self.url + path)
        return page

    async def sign_in(self) -> None:
        page = await self.open("/blank")
        token = rest.token("authenticated", str(ANN))
        await page.evaluate(_SIGN_IN, ["sb-127-auth-token", token, str(ANN), 3600])
        await page.close()

    async def registered(self) -> Page:
        """A page at which Ann is signed in, after the browser was registered."""
        page = await self.open()
        await page.get_by_role("button", name="Tell me").click()
        await until(lambda: self.answered)
        await page.close()
        await self.sign_in()
        page = await self.open()
        await self.called("register_device")
        return page

    async def push(self, **message: Any) -> None:
        """What FCM's message is for the browser."""
        await self.keeper.send(
            "ServiceWorker.deliverPushMessage",
            {"origin": self.url, "registrationId": "0", "data": json.dumps({"from": "2", **message})},
        )

    async def in_worker(self, script: str, argument: Any = None) -> Any:
        return await self.context.service_workers[0].evaluate(script, argument)

    async def shown(self, title: str) -> None:
        """Returns once the browser shows a notification."""
        await self.worker_says(_SHOWN, lambda shown: title in [each for each, _ in shown])

    async def worker_says(self, script: str, good: Callable[[Any], bool]) -> None:
        """Returns once the script's result is good."""
        async with asyncio.timeout(PATIENCE):
            while not good(await self.in_worker(script)):  # noqa: ASYNC110  # a worker tells nobody
                await asyncio.sleep(0.01)

    def calls(self, function: str) -> list[dict[str, Any]]:
        """The bodies of the requests that have been answered."""
        return [
            json.loads(request.body or b"{}")
            for request in self.server.requests
            if request.function == function and request.status is not None
        ]

    async def called(self, function: str, times: int = 1) -> list[dict[str, Any]]:
        await until(lambda: len(self.calls(function)) >= times)
        return self.calls(function)


@asynccontextmanager
async def hosting(files: Path, supabase: str) -> AsyncIterator[str]:
    """A web server with a page and what was built, for this address of Supabase."""

    async def text(request: web.Request) -> web.StreamResponse:
        name = request.path.lstrip("/")
        if not name.endswith(".js"):
            page = {"": _PAGE, "probe": '<script type="module" src="/probe.js"></script>'}.get(name, "")
            return web.Response(text=page, content_type="text/html")
        script = (files / name).read_text().replace(_SUPABASE, supabase)
        return web.Response(text=script, content_type="text/javascript")

    app = web.Application()
    app.router.add_get("/{path:.*}", text)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As docs/javascript.md says. Each test puts the address of its own server in."""
    project = typescript_tools.project(tmp_path_factory.mktemp("site"))
    (project / "config.ts").write_text(_CONFIG % (json.dumps(_SUPABASE), json.dumps(rest.PUBLISHABLE_KEY)))
    (project / "probe.ts").write_text(_PROBE)
    common = ["--bundle", "--outdir=public", "--log-level=warning"]
    for arguments in (["main.ts", "probe.ts", "--format=esm"], ["service-worker.ts"]):
        assert typescript_tools.run(project, "esbuild", *arguments, *common) == ""
    return project / "public"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium(whole=True) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def rows(database: Database) -> AsyncIterator[Rows]:
    async with rows_of(database.dsn) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def site(
    database: Database, monkeypatch: pytest.MonkeyPatch, built: Path, browser: Browser
) -> AsyncIterator[Site]:
    forget_proxies(monkeypatch)
    expect.set_options(timeout=PATIENCE * 1000)
    with rest.serving(database) as server:
        async with hosting(built, server.url) as url:
            context = await browser.new_context()
            await context.grant_permissions(["notifications"], origin=url)
            await context.add_init_script(_SUBSCRIBED)
            keeper = await context.new_cdp_session(await context.new_page())
            await keeper.send("ServiceWorker.enable")
            found = Site(url, server, context, keeper)

            async def installation(route: Route) -> None:
                token = {"token": "t", "expiresIn": "604800s"}
                await route.fulfill(json={"fid": FID, "refreshToken": "r", "authToken": token, **token})

            async def registration(route: Route) -> None:
                functions = [request.function for request in server.requests]
                found.google.append((route.request.method, functions))
                await route.fulfill(json={"name": f"projects/p/registrations/{FID}"})
                found.answered += 1

            await context.route("https://firebaseinstallations.googleapis.com/**", installation)
            await context.route("https://fcmregistrations.googleapis.com/**", registration)
            try:
                yield found
            finally:
                await context.close()


async def sent(rows: Rows, **values: object) -> str:
    """A push that has been sent to Ann's devices."""
    push_id = await rows.add(user_id=ANN, **values)
    await rows.query("select fetch_pending_pushes(10)")
    await rows.query("select mark_push_sent(%(id)s)", id=push_id)
    return str(push_id)


async def test_a_browser_registers_reports_pushes_and_leaves(site: Site, rows: Rows) -> None:
    # Nobody is signed in, and the user allows pushes: FCM knows the browser, the database does not yet.
    page = await site.open()
    await page.get_by_role("button", name="Tell me").click()
    await until(lambda: site.answered)
    await page.close()
    assert site.server.requests == []

    # After sign-in, at the next start.
    await site.sign_in()
    page = await site.open()

    assert await site.called("register_device") == [{"p_token": FID, "p_platform": "web"}]
    assert await rows.query("select token, platform, user_id from push_devices") == [
        {"token": FID, "platform": "web", "user_id": ANN}
    ]

    # A push while the page is visible: shown by the page, once, and delivered.
    push_id = await sent(rows, title="Hello")
    for _ in range(2):
        await site.push(data={"push_id": push_id}, notification={"title": "Hello", "tag": push_id})
    (receipt,) = await site.called("record_delivery_receipt")
    assert receipt == {**receipt, "p_push_id": push_id, "p_device_token": FID, "p_status": "delivered"}
    await expect(page.locator("#pushes li")).to_have_text(["Hello"])
    assert (await rows.get(UUID(push_id)))["status"] == "delivered"
    await page.close()

    # In the background: data-only, which the worker shows, a copy of it, and one with a title, which the SDK shows.
    quiet = await sent(rows, data={"title": "Quietly"})
    loud = await sent(rows, title="Loudly")
    for _ in range(2):
        await site.push(data={"push_id": quiet, "title": "Quietly", "link": "/inbox"})
    await site.push(data={"push_id": loud}, notification={"title": "Loudly", "tag": loud})
    await site.called("record_delivery_receipt", 4)
    # The SDK shows a push while the receipt is under way.
    await site.worker_says(_SHOWN, lambda shown: len(shown) >= 2)
    assert sorted(await site.in_worker(_SHOWN)) == sorted([["Quietly", quiet], ["Loudly", loud]])
    assert {(await rows.get(UUID(each)))["status"] for each in (quiet, loud)} == {"delivered"}

    # A tap on each. The SDK stops the event after our listener.
    assert await site.in_worker(_CLICK, quiet) == "/inbox"
    await site.in_worker(_CLICK, loud)
    opened = (await site.called("record_delivery_receipt", 6))[-2:]
    assert [(each["p_push_id"], each["p_status"]) for each in opened] == [(quiet, "opened"), (loud, "opened")]

    # The access token is over: the worker keeps the receipt, and refreshes nothing.
    page = await site.open("/blank")
    await page.evaluate(_EXPIRE)
    await page.close()
    late = await sent(rows, title="Late")
    await site.push(data={"push_id": late}, notification={"title": "Late", "tag": late})
    await site.worker_says(_WAITING, lambda count: count == 1)

    # The next page sends it, with the time at which it happened.
    page = await site.open()
    (flushed,) = await site.called("record_delivery_receipts")
    assert [(each["push_id"], each["status"]) for each in flushed["p_receipts"]] == [(late, "delivered")]
    assert len(site.calls("record_delivery_receipt")) == 6
    (log,) = await rows.query(
        "select details ->> 'at' as at from push_delivery_logs where push_id = %(id)s and status = 'delivered'",
        id=UUID(late),
    )
    assert log["at"]

    # Signing out, in order.
    await page.get_by_role("button", name="Sign out").click()
    await site.called("auth/logout")
    assert await rows.query("select token from push_devices") == []
    method, before = site.google[-1]
    assert (method, before[-1], "auth/logout" in before) == ("DELETE", "unregister_device", False)
    functions = [request.function for request in site.server.requests]
    assert functions[-1] == "auth/logout"
    assert "auth/token" not in functions

    # Nobody is signed in: a push that comes nevertheless is shown, and nobody reports it.
    await page.close()
    await site.push(data={"push_id": late, "title": "For nobody"})
    await site.shown("For nobody")
    assert [request.function for request in site.server.requests] == functions
    assert [request.status for request in site.server.requests if (request.status or 500) >= 300] == []


async def test_telemetry_is_stored_once_and_what_waits_has_bounds(site: Site, rows: Rows) -> None:
    await site.sign_in()
    page = await site.open("/probe")
    await page.wait_for_function("telemetry.log('start', 'cold', { ms: 412 })")
    site.server.faults.append("cut")
    await page.evaluate("telemetry.flush()")  # stored, but the page does not know
    await page.evaluate("telemetry.flush()")
    first, second = await site.called("flush_telemetry", 2)
    assert first == second
    # The database refuses a batch with this character as a whole.
    await page.evaluate("for (const text of ['one', '\\u0000', 'two', 'three']) telemetry.log('tap', text)")
    await page.evaluate("telemetry.log('x'.repeat(101))")  # and of another one this record alone
    assert await page.evaluate("telemetry.flush().then(() => telemetry.dropped)") == 2
    stored = await rows.query("select message, meta, user_id from telemetry_logs order by message")
    assert [row["message"] for row in stored] == ["cold", "one", "three", "two"]
    assert (stored[0]["meta"], {row["user_id"] for row in stored}) == ({"ms": 412}, {ANN})
    assert await page.evaluate("probe.store().then((db) => db.count('batches'))") == 0

    # Without a network.
    site.server.away = True
    assert await page.evaluate(_FILL) == {
        "batches": 100,
        "dropped": 3,
        "receipts": 500,
        "oldest": "second",
        "shown": 200,
    }
    first_again, last_again = await page.evaluate("Promise.all([probe.isFirst('0'), probe.isFirst('200')])")
    assert (first_again, last_again) == (True, False)


async def test_a_record_that_is_no_json_or_is_not_kept_is_counted_and_takes_no_other_with_it(
    site: Site, rows: Rows
) -> None:
    """``JSON.stringify`` leaves out a function and reads a Proxy of Vue's; IndexedDB refuses both."""
    await site.sign_in()
    page = await site.open("/probe")
    await page.wait_for_function("telemetry.log('first')")
    logged = await page.evaluate("""() => {
      const circle = { size: 1n };
      circle.self = circle;
      return [{ retry: () => 1 }, { order: new Proxy({ id: 7 }, {}) }, circle, { size: 1n }, undefined].map(
        (meta) => telemetry.log('another', '', meta));
    }""")
    assert logged == [True, True, False, False, True]
    assert await page.evaluate("telemetry.flush().then(() => telemetry.dropped)") == 2
    stored = await rows.query("select meta from telemetry_logs where type = 'another'")
    assert sorted(str(row["meta"]) for row in stored) == sorted(["{}", "{'order': {'id': 7}}", "None"])

    # Two that the browser does not keep.
    await page.evaluate("telemetry.log('first')")
    await page.evaluate(_LOSE_THE_STORE)
    await page.evaluate("telemetry.log('second')")
    assert await page.evaluate("telemetry.flush().then(() => telemetry.dropped)") == 4


async def test_a_push_is_shown_and_the_user_is_signed_out_though_the_store_is_lost(site: Site) -> None:
    page = await site.registered()
    await page.evaluate(_LOSE_THE_STORE)
    await site.push(data={"push_id": str(ANN)}, notification={"title": "Hello"})
    await expect(page.locator("#pushes li")).to_have_text(["Hello"])
    await page.get_by_role("button", name="Sign out").click()
    await site.called("auth/logout")
    assert site.google[-1][0] == "DELETE"  # the store may have known a device, so FCM is told


async def test_a_page_without_a_service_worker_signs_the_user_and_the_device_out(
    site: Site, rows: Rows
) -> None:
    page = await site.registered()
    await page.close()
    page = await site.context.new_page()
    await page.add_init_script(
        "navigator.serviceWorker.register = async () => { throw new TypeError('404'); }"
    )
    await page.goto(site.url + "/")
    await page.get_by_role("button", name="Tell me").click()
    await page.get_by_role("button", name="Sign out").click()
    await site.called("auth/logout")
    assert await rows.query("select token from push_devices") == []
    stored = await rows.query("select message from telemetry_logs")
    assert [row["message"] for row in stored] == ["failed"]


async def test_no_more_receipts_are_sent_at_once_than_the_database_takes(site: Site) -> None:
    await site.sign_in()
    page = await site.open("/probe")
    await page.evaluate(_TOO_MANY_RECEIPTS, str(ANN))
    page = await site.open()
    (flushed,) = await site.called("record_delivery_receipts")
    assert len(flushed["p_receipts"]) == 500
    assert [request.status for request in site.server.requests if (request.status or 500) >= 300] == []


async def test_the_store_is_opened_again_after_a_failure_and_after_the_browser_has_closed_it(
    site: Site,
) -> None:
    page = await site.open("/probe")
    await page.wait_for_function("window.probe")
    assert await page.evaluate(_FAIL_TO_OPEN_ONCE) == ["VersionError", 1]
    # What a browser does when it closes the database of a page.
    await page.evaluate("probe.store().then((db) => { db.close(); db.dispatchEvent(new Event('close')); })")
    assert await page.evaluate("probe.isFirst('a push')") is True
