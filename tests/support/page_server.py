"""The operator's page with views of a test's own, served over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from listener.config import load
from listener.operating.acting import Acting
from listener.operating.reading import Reading
from listener.postgres.connect import Address
from listener.postgres.on_demand import OnDemand
from listener.web.page.access import VISITOR, Access, Keys
from listener.web.page.app import Context, Page, Snapshot, State
from listener.web.page.history import History
from listener.web.server import Web

NOWHERE = "postgresql://nobody@127.0.0.1:1/none"
PAGE_TOKEN = "token-that-only-reads"
ACTION_TOKEN = "token-that-also-acts"


@dataclass(slots=True)
class Served:
    """A page that is being served."""

    port: int = 0
    prefix: str = ""
    keys: Keys = field(default_factory=lambda: Keys(None, {}))
    page: Page | None = None
    context: Context | None = None
    acts: list[str] = field(default_factory=list)
    """Who has acted."""
    rendered: int = 0
    """How often a snapshot was rendered."""

    async def ask(
        self,
        method: str,
        path: str,
        *headers: Mapping[str, str],
        data: Mapping[str, str] | bytes | None = None,
    ) -> Answer:
        """One request, with all of these headers, and no cookies but those in them."""
        given = {name: value for some in headers for name, value in some.items()}
        async with (
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
            http.request(
                method,
                f"http://127.0.0.1:{self.port}{self.prefix}{path}",
                headers=given,
                data=data,
                allow_redirects=False,
            ) as answer,
        ):
            # The stream of events has no end.
            body = b"" if answer.content_type == "text/event-stream" else await answer.read()
            return Answer(answer.status, dict(answer.headers), body.decode())


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    text: str


@asynccontextmanager
async def served(
    dsn: str = NOWHERE,
    *,
    watched: asyncio.Event | None = None,
    access: Mapping[str, Any] | None = None,
    state: State | None = None,
    **settings: object,
) -> AsyncIterator[Served]:
    """Serves a page whose views only tell that they were reached.

    ``settings`` are those of the environment; ``access``: further arguments of Access. The answer to a wrong token
    takes no time unless they say so.
    """
    known = load(**{"database_url": NOWHERE, "port": 0, "metrics_token": None, **settings})
    found = Served(prefix=known.path_prefix)
    token = known.page_token
    found.keys = Keys(
        None if token is None else token.get_secret_value(),
        {name: secret.get_secret_value() for name, secret in known.action_tokens.items()},
    )
    doors = Access(
        found.keys,
        is_open=found.keys.are_none and known.is_on_loopback,
        prefix=known.path_prefix,
        **{"patience": 0.0, **(access or {})},
    )
    one = OnDemand(Address(dsn), "push-listener page")

    def routes(context: Context) -> list[web.RouteDef]:
        found.context = context

        async def show(request: web.Request) -> web.StreamResponse:
            return web.Response(text=f"shown to {request[VISITOR].name}\n")

        async def act(request: web.Request) -> web.StreamResponse:
            found.acts.append(request[VISITOR].name)
            return web.Response(text="done\n")

        async def home(request: web.Request) -> web.StreamResponse:
            return web.Response(text=(await context.snapshot()).verdict.sentence + "\n")

        async def read(request: web.Request) -> web.StreamResponse:
            return web.Response(text=f"{len(await context.reading.workers())} workers\n")

        async def fail(request: web.Request) -> web.StreamResponse:
            raise RuntimeError("a payload")

        return [
            web.get("/", home),
            web.get("/pushes", show),
            web.post("/pushes", act),
            web.get("/workers", read),
            web.get("/fail", fail),
            web.get("/login", show),
            web.get("/events", context.streams.watch),
        ]

    def render(snapshot: Snapshot) -> dict[str, str]:
        found.rendered += 1
        return {"verdict": snapshot.verdict.sentence, "number": str(found.rendered)}

    bounds = (1.0, float("inf"))
    found.page = Page(
        doors,
        Reading(one.connection),
        Acting(one.connection),
        History(bounds, lambda: (0, 0), lambda: 0.0),
        lambda: state or State([], None, None, None, None, 0, 0.0, None, "test"),
        routes,
        render,
        watched=watched or asyncio.Event(),
        prefix=known.path_prefix,
        sees_workers=True,
    )
    try:
        async with Web(known, CollectorRegistry(), list, found.page).serve() as found.port:
            try:
                yield found
            finally:
                found.page.leave()
    finally:
        await found.page.close()
        await one.close()
