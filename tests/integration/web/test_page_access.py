"""Who may see the page and who may act, over real HTTP: each kind of visitor, from each kind of origin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from http.cookies import SimpleCookie
from itertools import product
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from listener.web.page.access import COOKIE, Keys, Visitor
from listener.web.page.headers import CONTENT_SECURITY_POLICY
from tests.support.page_server import ACTION_TOKEN, PAGE_TOKEN, Answer, Served, served
from tests.support.service import until

TOKENS: dict[str, Any] = {"page_token": PAGE_TOKEN, "action_tokens": f"anna:{ACTION_TOKEN}"}
ANNA = Visitor("anna", may_read=True, may_act=True)
READER = Visitor("reader", may_read=True, may_act=False)
HTML = {"Accept": "text/html"}


@pytest.fixture
async def page() -> AsyncIterator[Served]:
    async with served(host="127.0.0.1", **TOKENS) as started:
        yield started


def cookie_of(answer: Answer) -> str:
    found = SimpleCookie(answer.headers["Set-Cookie"])
    return f"{COOKIE}={found[COOKIE].coded_value}"


def asked_of(location: str) -> dict[str, str]:
    """The query of a way to the login."""
    parts = urlsplit(location)
    assert (parts.netloc, parts.path) == ("", "/login")
    return dict(parse_qsl(parts.query))


# --- everything with everything --------------------------------------------------------------------------------------


def visitors(keys: Keys) -> dict[str, dict[str, str]]:
    """The headers of each kind of visitor."""
    anna, reader = keys.cookie(ANNA), keys.cookie(READER)
    other = Keys("another-token", {"anna": "yet-another-token"})
    return {
        "nobody": {},
        "wrong bearer": {"Authorization": "Bearer wrong-token"},
        "empty bearer": {"Authorization": "Bearer "},
        "token as basic": {"Authorization": f"Basic {ACTION_TOKEN}"},
        "wrong cookie": {"Cookie": f"{COOKIE}={anna[:-2]}{'A' if anna[-2] != 'A' else 'B'}{anna[-1]}"},
        "token as cookie": {"Cookie": f"{COOKIE}={ACTION_TOKEN}"},
        "cookie before rotation": {"Cookie": f"{COOKIE}={other.cookie(ANNA)}"},
        "wrong bearer with anna's cookie": {
            "Authorization": "Bearer wrong-token",
            "Cookie": f"{COOKIE}={anna}",
        },
        "reader's bearer": {"Authorization": f"Bearer {PAGE_TOKEN}"},
        "reader's cookie": {"Cookie": f"{COOKIE}={reader}"},
        "anna's bearer": {"Authorization": f"Bearer {ACTION_TOKEN}"},
        "anna's cookie": {"Cookie": f"{COOKIE}={anna}"},
    }


READ = {"reader's bearer", "reader's cookie", "anna's bearer", "anna's cookie"}
ACT = {"anna's bearer", "anna's cookie"}
FETCH = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


def origins(port: int) -> dict[str, dict[str, str]]:
    """What a browser says of where a request comes from."""
    own, foreign = f"http://127.0.0.1:{port}", "https://evil.example"
    return {
        "same origin": {"Sec-Fetch-Site": "same-origin", "Origin": own, **FETCH},
        "an old browser": {"Origin": own},
        "nothing": {},
        "typed by hand": {"Sec-Fetch-Site": "none", **LINK},
        "a link elsewhere": {"Sec-Fetch-Site": "cross-site", **LINK},
        "a form elsewhere": {"Sec-Fetch-Site": "cross-site", "Origin": foreign, **LINK},
        "a script elsewhere": {"Sec-Fetch-Site": "cross-site", "Origin": foreign, **FETCH},
        "a frame elsewhere": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        "a sibling": {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1", **FETCH},
        "an old browser elsewhere": {"Origin": foreign},
        "another port": {"Origin": "http://127.0.0.1:1"},
        "a sandbox": {"Origin": "null"},
        "another scheme": {"Origin": f"file://127.0.0.1:{port}"},
    }  # fmt: skip


MAY_POST = {"same origin", "an old browser"}
MAY_GET = {
    "same origin", "an old browser", "nothing", "typed by hand", "a link elsewhere", "a form elsewhere",
    "an old browser elsewhere", "another port", "a sandbox", "another scheme",
}  # fmt: skip
"""Without Sec-Fetch-Site a GET goes through: its answer can be read by no other site, because nothing allows that."""


async def test_only_those_read_that_may(page: Served) -> None:
    for (who, known), (whence, said) in product(visitors(page.keys).items(), origins(page.port).items()):
        answer = await page.ask("GET", "/pushes", known, said)
        allowed = who in READ and whence in MAY_GET
        assert (answer.status == 200) is allowed, (who, whence, answer)
        assert answer.status in (200, 401, 403)
        assert allowed or "shown" not in answer.text


async def test_only_those_watch_that_may(page: Served) -> None:
    for who, known in visitors(page.keys).items():
        status = (await page.ask("GET", "/events", known)).status
        assert status == (200 if who in READ else 401), who
        assert (await page.ask("GET", "/events", known, {"Sec-Fetch-Site": "cross-site"})).status == 403


async def test_only_those_act_that_may_and_only_from_the_page_itself(page: Served) -> None:
    for (who, known), (whence, said) in product(visitors(page.keys).items(), origins(page.port).items()):
        before = len(page.acts)
        answer = await page.ask("POST", "/pushes", known, said)
        is_own = whence in MAY_POST or (whence == "nothing" and "Authorization" in known)
        allowed = who in ACT and (is_own and (whence != "nothing" or "bearer" in who))
        assert answer.status == (200 if allowed else 403), (who, whence, answer)
        assert page.acts[before:] == (["anna"] if allowed else []), (who, whence)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_no_other_method_does_anything(page: Served, method: str) -> None:
    answer = await page.ask(method, "/pushes", {"Authorization": f"Bearer {ACTION_TOKEN}"})
    assert answer.status == 405
    assert not any(name.lower().startswith("access-control") for name in answer.headers)


async def test_every_visitor_gets_style_and_login(page: Served) -> None:
    assert page.context is not None
    style = page.context.asset("vendor/uPlot.min.css")
    for who, known in visitors(page.keys).items():
        assert (await page.ask("GET", style, known)).status == 200, who
        login = await page.ask("GET", "/login", known)
        assert login.status == (303 if who in READ else 200), who


async def test_without_any_token_a_public_address_is_closed() -> None:
    async with served(host="0.0.0.0") as closed:
        for method, path in product(("GET", "POST"), ("/", "/pushes", "/login", "/events")):
            if (method, path) in (("POST", "/"), ("POST", "/events")):
                continue
            for known in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {ACTION_TOKEN}"}):
                said = {"Origin": f"http://127.0.0.1:{closed.port}"} if method == "POST" else {}
                answer = await closed.ask(method, path, known, said)
                assert answer.status == 403
                assert answer.text.startswith("closed: set PAGE_TOKEN")
        assert closed.acts == []


# --- open on loopback ------------------------------------------------------------------------------------------------

OWN_NAMES = ["127.0.0.1", "localhost", "LocalHost", "[::1]", "127.0.0.1:80", "localhost:8080", "[::1]:1"]
OTHER_NAMES = [
    "evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "localhost.",
    "127.0.0.1@evil.example", "10.0.0.1", "[::2]", "0.0.0.0", "[", "",
]  # fmt: skip


@pytest.mark.parametrize("host", OWN_NAMES)
async def test_on_loopback_the_page_is_open_to_this_machine(host: str) -> None:
    async with served(host="127.0.0.1") as page:
        assert (await page.ask("GET", "/pushes", {"Host": host})).text == "shown to local\n"
        answer = await page.ask("POST", "/pushes", {"Host": host, "Origin": f"http://{host}"})
        assert (answer.status, page.acts) == (200, ["local"])


@pytest.mark.parametrize("host", OTHER_NAMES)
async def test_on_loopback_no_other_name_leads_to_the_page(host: str) -> None:
    """DNS rebinding: a site's own name leads to 127.0.0.1, and the browser thinks that all is of one origin."""
    async with served(host="127.0.0.1") as page:
        own = {"Sec-Fetch-Site": "same-origin", "Origin": f"http://{host}"}
        for method, path in (("GET", "/"), ("GET", "/pushes"), ("GET", "/events"), ("POST", "/pushes")):
            answer = await page.ask(method, path, own, {"Host": host})
            assert (answer.status, page.acts) == (403, []), (method, path)


async def test_on_loopback_an_own_host_with_a_foreign_origin_is_refused() -> None:
    async with served(host="127.0.0.1") as page:
        own = {"Sec-Fetch-Site": "same-origin", "Origin": "https://push.example"}
        assert (await page.ask("POST", "/pushes", own)).status == 403
        assert (await page.ask("POST", "/pushes")).status == 403
        assert page.acts == []


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Host"])
async def test_on_loopback_behind_a_proxy_that_names_its_clients_the_page_is_closed(header: str) -> None:
    async with served(host="127.0.0.1") as page:
        answer = await page.ask("GET", "/pushes", {header: "203.0.113.7"})
        assert (answer.status, "set PAGE_TOKEN" in answer.text) == (403, True)


async def test_on_loopback_a_bearer_token_that_nobody_asks_for_opens_nothing() -> None:
    """nginx as it comes names the upstream in Host and adds no header: then only Origin tells the page's own forms."""
    async with served(host="127.0.0.1") as page:
        assert (await page.ask("POST", "/pushes", {"Authorization": "Bearer x"})).status == 403
        assert page.acts == []


# --- the login -------------------------------------------------------------------------------------------------------


async def log_in(
    page: Served, token: str, wanted: str = "/pushes?status=dead", *headers: Mapping[str, str]
) -> Answer:
    own = {"Origin": f"http://127.0.0.1:{page.port}"}
    return await page.ask("POST", "/login", own, *headers, data={"token": token, "next": wanted})


@pytest.mark.parametrize(
    ("token", "name"), [(PAGE_TOKEN, "reader"), (ACTION_TOKEN, "anna"), (f" {ACTION_TOKEN}\n", "anna")]
)
async def test_a_login_sets_a_cookie_and_leads_back(page: Served, token: str, name: str) -> None:
    answer = await log_in(page, token)
    assert (answer.status, answer.headers["Location"]) == (303, "/pushes?status=dead")
    morsel = SimpleCookie(answer.headers["Set-Cookie"])[COOKIE]
    assert (morsel["httponly"], morsel["samesite"], morsel["path"], morsel["secure"]) == (
        True,
        "Strict",
        "/",
        "",
    )
    assert morsel["max-age"] == str(12 * 3600)
    assert token.strip() not in str(answer.headers)
    shown = await page.ask("GET", "/pushes", {"Cookie": cookie_of(answer)})
    assert shown.text == f"shown to {name}\n"
    assert shown.headers["Cache-Control"] == "no-store"


async def test_the_cookie_is_secure_behind_tls_and_belongs_to_the_path() -> None:
    async with served(host="0.0.0.0", path_prefix="/push", **TOKENS) as page:
        answer = await log_in(page, PAGE_TOKEN, "/push/pushes", {"X-Forwarded-Proto": "https"})
        assert answer.headers["Location"] == "/push/pushes"
        morsel = SimpleCookie(answer.headers["Set-Cookie"])[COOKIE]
        assert (morsel["secure"], morsel["path"]) == (True, "/push")
        gone = await page.ask(
            "POST", "/logout", {"Origin": f"http://127.0.0.1:{page.port}", "Cookie": cookie_of(answer)}
        )
        assert (gone.status, gone.headers["Location"]) == (303, "/push/login")
        morsel = SimpleCookie(gone.headers["Set-Cookie"])[COOKIE]
        assert (morsel.value, morsel["max-age"], morsel["path"]) == ("", "0", "/push")


@pytest.mark.parametrize(
    "wanted",
    [
        "https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "", "/a\r\nSet-Cookie: x=y",
        "/\u202e",
    ],
)  # fmt: skip
async def test_the_login_leads_nowhere_else(page: Served, wanted: str) -> None:
    answer = await log_in(page, PAGE_TOKEN, wanted)
    assert (answer.status, answer.headers["Location"]) == (303, "/")


async def test_a_login_from_another_site_is_refused(page: Served) -> None:
    for said in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {}):
        answer = await page.ask("POST", "/login", said, data={"token": PAGE_TOKEN})
        assert (answer.status, "Set-Cookie" in answer.headers) == (403, False)


async def test_a_wrong_token_sets_no_cookie(page: Served) -> None:
    for token in ("", "wrong", PAGE_TOKEN[:-1], PAGE_TOKEN + "x", "\u00e9"):
        answer = await log_in(page, token)
        assert (answer.status, "Set-Cookie" in answer.headers) == (303, False)
        assert asked_of(answer.headers["Location"]) == {"next": "/pushes?status=dead", "wrong": "1"}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", b"token=\xff"),
        ("application/x-www-form-urlencoded", b"token=%ff"),
        ("application/x-www-form-urlencoded", b"token=a%00b"),
        ("application/x-www-form-urlencoded", b"a=b&" * 1000),
        ("application/x-www-form-urlencoded; charset=nonsense", b"token=a"),
        ("multipart/form-data; boundary=x", b"--x\r\nfoo\r\n\r\n--x--"),
        ("multipart/form-data", b"token=a"),
        ("text/plain", b"token=a"),
    ],
)
async def test_a_broken_form_of_a_stranger_is_no_fault_of_the_page(
    page: Served, caplog: pytest.LogCaptureFixture, kind: str, body: bytes
) -> None:
    own = {"Origin": f"http://127.0.0.1:{page.port}"}
    answer = await page.ask("POST", "/login", own, {"Content-Type": kind}, data=body)
    assert (answer.status, "This form cannot be read" in answer.text) == (400, True)
    assert "fault" not in caplog.text


async def test_only_a_few_wrong_tokens_are_tried_at_a_time() -> None:
    async with served(access={"patience": 3600.0, "most": 2}, **TOKENS) as page:
        wrong = [
            asyncio.create_task(page.ask("GET", "/pushes", {"Authorization": f"Bearer {n}"}))
            for n in range(2)
        ]
        bearer = {"Authorization": f"Bearer {PAGE_TOKEN}"}
        await until_busy(page)
        answer = await page.ask("GET", "/pushes", {"Authorization": "Bearer 3"})
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        answer = await log_in(page, "x")
        assert answer.headers["Location"].endswith("&wrong=wait")
        # Nobody is kept out by the guesses of others.
        cookie = f"{COOKIE}={page.keys.cookie(READER)}"
        assert (await page.ask("GET", "/pushes", {"Cookie": cookie})).status == 200
        assert (await page.ask("GET", "/pushes", bearer)).status == 200
        assert "Set-Cookie" in (await log_in(page, ACTION_TOKEN)).headers
        for task in wrong:
            task.cancel()
        await asyncio.gather(*wrong, return_exceptions=True)
    async with served(access={"patience": 3600.0, "most_of_all": 0}, **TOKENS) as page:
        assert (await page.ask("GET", "/pushes", {"Authorization": "Bearer 1"})).status == 429
        assert (await page.ask("GET", "/pushes", bearer)).status == 200
    async with served(access={"most": 2}, **TOKENS) as page:
        for n in range(5):
            assert (await page.ask("GET", "/pushes", {"Authorization": f"Bearer {n}"})).status == 401
        assert (await page.ask("GET", "/pushes", bearer)).status == 200


async def until_busy(page: Served) -> None:
    """Returns once as many wrong tokens as may be are being answered."""
    assert page.page is not None
    access = page.page._access
    await until(lambda: access._waiting.total() == access._most)


# --- where those are led that are not known --------------------------------------------------------------------------


async def test_a_person_is_led_to_the_login_and_a_program_is_told(page: Served) -> None:
    answer = await page.ask("GET", "/pushes?status=dead&user=x%26y", HTML)
    assert answer.status == 303
    assert asked_of(answer.headers["Location"]) == {"next": "/pushes?status=dead&user=x%26y"}
    answer = await page.ask("GET", "/pushes")
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    answer = await page.ask("GET", "/pushes", HTML, {"HX-Request": "true"})
    assert answer.status == 401
    assert asked_of(answer.headers["HX-Redirect"]) == {"next": "/"}


async def test_a_link_from_elsewhere_leads_on_by_the_page_itself(page: Served) -> None:
    """The browser sends a SameSite=Strict cookie only then."""
    said = {"Sec-Fetch-Site": "cross-site", **LINK, **HTML}
    answer = await page.ask("GET", "/pushes?status=dead", said)
    assert answer.status == 200
    at_once, _, onward = answer.headers["Refresh"].partition("; url=")
    assert (at_once, asked_of(onward)) == ("0", {"next": "/pushes?status=dead"})
    cookie = f"{COOKIE}={page.keys.cookie(READER)}"
    answer = await page.ask("GET", "/login?next=%2Fpushes%3Fstatus%3Ddead", HTML, {"Cookie": cookie})
    assert (answer.status, answer.headers["Location"]) == (303, "/pushes?status=dead")


# --- headers, prefix, faults -----------------------------------------------------------------------------------------


async def test_every_answer_has_the_headers(page: Served) -> None:
    assert page.context is not None
    reader = {"Authorization": f"Bearer {PAGE_TOKEN}", **HTML}
    style = page.context.asset("vendor/uPlot.min.css")
    asked = [
        ("GET", "/pushes", reader, 200), ("GET", "/events", reader, 200), ("GET", "/pushes", HTML, 303),
        ("GET", "/pushes", {}, 401), ("POST", "/pushes", reader, 403), ("GET", "/login", {}, 200),
        ("GET", "/fail", reader, 500), ("GET", "/workers", reader, 503), ("GET", style, {}, 200),
        ("GET", "/static/0123456789abcdef/vendor/uPlot.min.css", {}, 404), ("GET", "/nothing", {}, 404),
        ("DELETE", "/pushes", reader, 405), ("GET", "/healthz", {}, 200),
    ]  # fmt: skip
    for method, path, headers, status in asked:
        answer = await page.ask(method, path, headers)
        assert answer.status == status, (method, path, answer)
        assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        is_fixed = path == style
        assert answer.headers["Cache-Control"] == (
            "public, max-age=31536000, immutable" if is_fixed else "no-store"
        )


async def test_under_a_prefix_the_page_answers_there_only() -> None:
    async with served(host="127.0.0.1", path_prefix="/push/") as page:
        assert page.prefix == "/push"
        assert (await page.ask("GET", "/pushes")).status == 200
        answer = await page.ask("GET", "?a=b%26c")
        assert (answer.status, answer.headers["Location"]) == (308, "/push/?a=b%26c")
        assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
        page.prefix = ""
        assert (await page.ask("GET", "/pushes")).status == (await page.ask("GET", "/")).status == 404
        assert (await page.ask("GET", "/healthz")).status == (await page.ask("GET", "/metrics")).status == 200
        assert page.context is not None
        style = page.context.asset("vendor/uPlot.min.css")
        assert style.startswith("/push/static/")
        answer = await page.ask("GET", style)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/css; charset=utf-8")


async def test_a_fault_quotes_nothing(page: Served, caplog: pytest.LogCaptureFixture) -> None:
    answer = await page.ask("GET", "/fail", HTML, {"Authorization": f"Bearer {PAGE_TOKEN}"})
    assert answer.status == 500
    assert "payload" not in answer.text + caplog.text


async def test_what_goes_wrong_is_told_on_a_page_that_leads_back() -> None:
    async with served(host="127.0.0.1", path_prefix="/push") as page:
        assert page.context is not None
        for path in ("/fail", "/workers"):
            text = (await page.ask("GET", path, HTML)).text
            assert f'href="{page.context.asset("app.css")}"' in text
            assert '<a href="/push/">Overview</a>' in text


async def test_without_a_database_the_page_says_so(page: Served) -> None:
    reader = {"Authorization": f"Bearer {PAGE_TOKEN}"}
    answer = await page.ask("GET", "/workers", reader)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert answer.text.startswith("The database cannot be read.\nthe host refuses the connection")
    answer = await page.ask("GET", "/", reader)
    assert answer.status == 200
    assert answer.text.startswith("This page cannot read the database")
