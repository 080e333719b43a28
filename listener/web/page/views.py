"""The views of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from listener.web.page.app import Context, Snapshot


def routes(context: Context) -> list[web.RouteDef]:
    """What the page answers."""

    async def home(request: web.Request) -> web.StreamResponse:
        snapshot = await context.snapshot()
        return web.Response(text=f"{snapshot.verdict.sentence}\n")

    async def login(request: web.Request) -> web.StreamResponse:
        return web.Response(text="post the field token to this path\n")

    return [web.get("/", home), web.get("/login", login), web.get("/events", context.streams.watch)]


def render_home(snapshot: Snapshot) -> dict[str, str]:
    """The verdict, for those that watch."""
    return {"verdict": snapshot.verdict.sentence}
