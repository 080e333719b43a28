"""A real headless Chromium, which notes whatever a page must not do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from tests.support.tools import tool

# Chromium would ask its maker for updates and settings; in a container it cannot make a sandbox of its own.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

_NOTE_VIOLATIONS = """
document.addEventListener('securitypolicyviolation', event => {
  console.error('CSP: ' + event.violatedDirective + ' refuses ' + (event.blockedURI || event.sample));
});
"""

PHONE, DESK = 360, 1280
"""Widths in pixels."""


@dataclass(slots=True)
class Misdeeds:
    """What pages did that they must not do, one line each."""

    lines: list[str] = field(default_factory=list)

    def watch(self, page: Page, origin: str) -> None:
        """Notes requests to other origins, violations of the content security policy, and errors of scripts."""

        def requested(url: str) -> None:
            if not url.startswith((origin, "data:", "about:", "blob:")):
                self.lines.append(f"a request left the origin: {url}")

        page.on("request", lambda request: requested(request.url))
        page.on("pageerror", lambda error: self.lines.append(f"a script failed: {error}"))
        page.on(
            "console",
            lambda message: (
                self.lines.append(f"the console says: {message.text}")
                if message.text.startswith("CSP: ")
                else None
            ),
        )


@asynccontextmanager
async def chromium(*, whole: bool = False) -> AsyncIterator[Browser]:
    """A browser. Skips the test where there is none; fails it where CI=true.

    Args:
        whole: also what a page without a window does not need: permissions, notifications. Without it this may be
            Chromium's shell, which takes a fifth of the CPU time for a page.
    """
    async with async_playwright() as playwright:
        program = tool("chromium") if whole else tool("chromium-headless-shell", "chromium")
        browser = await playwright.chromium.launch(executable_path=program, args=list(_FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def tab(
    browser: Browser,
    url: str,
    *,
    width: int = DESK,
    scheme: Literal["light", "dark"] = "light",
    bypass_csp: bool = False,
    headers: Mapping[str, str] | None = None,
    prepare: Callable[[Page], Awaitable[None]] | None = None,
) -> AsyncIterator[Page]:
    """A page of a new profile that has gone to ``url``. Fails at the end if it did what it must not do.

    ``prepare`` gets the page before it goes there.
    """
    misdeeds = Misdeeds()
    context: BrowserContext = await browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        bypass_csp=bypass_csp,
        extra_http_headers=dict(headers or {}),
        timezone_id="Asia/Tokyo",
    )
    try:
        await context.add_init_script(_NOTE_VIOLATIONS)
        page = await context.new_page()
        parts = urlsplit(url)
        misdeeds.watch(page, f"{parts.scheme}://{parts.netloc}")
        if prepare is not None:
            await prepare(page)
        await page.goto(url)
        yield page
        assert misdeeds.lines == []
    finally:
        await context.close()


CONTRAST = "color-contrast"
"""The rule of axe about colours."""


async def barriers(page: Page, *, only: str | None = None, without: str | None = None) -> list[str]:
    """What axe calls serious or critical, one line each. The page must be open with ``bypass_csp``.

    Args:
        only: the one rule to try.
        without: a rule not to try.
    """
    options: dict[str, object] = {"resultTypes": ["violations"]}
    axe = Axe()
    if not await page.evaluate("'axe' in window"):  # to read it takes a third of the time
        await page.evaluate(axe.axe_script)
    if only is not None:
        options["runOnly"] = [only]
    if without is not None:
        options["rules"] = {without: {"enabled": False}}
    found = await page.evaluate("options => axe.run(options)", options)
    return [
        f"{violation['id']}: {node['html']}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
