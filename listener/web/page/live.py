"""Server-sent events: one sample a second for everybody who watches, rendered once, and none while nobody does."""

from __future__ import annotations

from aiohttp import web


class Streams:
    """The open streams."""

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """Answers a GET with the stream of samples, until the client or the process leaves; 503 if there are too many."""
        raise NotImplementedError
