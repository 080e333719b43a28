"""Server-sent events: one sample a second for everybody who watches, rendered once, and none while nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from listener.web.page.faults import tell_fault

MOST = 16
"""Streams at the same time. A browser keeps one for each tab that is seen."""


class Streams:
    """The open streams, and what is sent on them.

    Args:
        sample: returns the data of each event, by the event's name; '' is an event without a name.
        watched: is set while there is a stream.
        most: streams at the same time.
        interval: seconds between two samples.
        ping: seconds between two comments, which keep proxies from closing a stream.
        patience: seconds in which a client must take what is sent, or it is dropped.
    """

    def __init__(
        self,
        sample: Callable[[], Awaitable[Mapping[str, str]]],
        watched: asyncio.Event,
        *,
        most: int = MOST,
        interval: float = 1.0,
        ping: float = 15.0,
        patience: float = 10.0,
    ) -> None:
        self._sample = sample
        self._watched = watched
        self._most = most
        self._interval = interval
        self._ping = ping
        self._patience = patience
        self._open: set[_Stream] = set()
        self._last: Mapping[str, str] = {}
        self._sampling: asyncio.Task[None] | None = None
        self._is_closed = False

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """Answers a GET with events until the client or the process leaves. 503: too many watch, or it is leaving."""
        self._drop_gone()
        if self._is_closed or len(self._open) >= self._most:
            text = "too many people watch this page at the moment\n"
            return web.Response(status=503, headers={"Retry-After": "10"}, text=text)
        stream = _Stream(request, self._last)
        self._open.add(stream)
        self._watched.set()
        if self._sampling is None:
            self._sampling = asyncio.create_task(self._go_on_sampling())
        response = EventSourceResponse(ping_interval=self._ping, send_timeout=self._patience)
        try:
            await response.prepare(request)
            async with response:
                await stream.send_to(response)
        except (ConnectionResetError, TimeoutError):
            pass  # the client has gone, or took nothing for too long
        finally:
            self._drop(stream)
        return response

    def close(self) -> None:
        """Ends all streams at once, and begins no more."""
        self._is_closed = True
        for stream in [*self._open]:
            self._drop(stream)
        if self._sampling is not None:
            self._sampling.cancel()

    def _drop(self, stream: _Stream) -> None:
        stream.end()
        self._open.discard(stream)
        if not self._open:
            self._watched.clear()

    def _drop_gone(self) -> None:
        """A client that has gone would otherwise be noticed with the next event, and hold a place until then."""
        for stream in [each for each in self._open if each.is_gone]:
            self._drop(stream)

    async def _go_on_sampling(self) -> None:
        try:
            while self._open:
                try:
                    events = await self._sample()
                except Exception as error:
                    tell_fault("/events", error)
                else:
                    changed = {name: text for name, text in events.items() if self._last.get(name) != text}
                    self._last = events
                    for stream in self._open:
                        stream.offer(changed)
                await asyncio.sleep(self._interval)
                self._drop_gone()
        finally:
            self._sampling, self._last = None, {}


class _Stream:
    """One watcher, with what it has not been sent yet: of each event only the newest."""

    def __init__(self, request: web.Request, first: Mapping[str, str]) -> None:
        self._request = request
        self._waiting = dict(first)
        self._news = asyncio.Event()
        self._is_sending = False
        self._has_ended = False
        if first:
            self._news.set()

    @property
    def is_gone(self) -> bool:
        """Whether the client has closed the connection."""
        return self._request.transport is None or self._request.transport.is_closing()

    def offer(self, events: Mapping[str, str]) -> None:
        """Will be sent, unless something newer comes before."""
        if events:
            self._waiting.update(events)
            self._news.set()

    def end(self) -> None:
        """Sends no more; leaves a client in the lurch that does not take what is being sent."""
        self._has_ended = True
        self._news.set()
        if self._is_sending and self._request.transport is not None:
            self._request.transport.abort()

    async def send_to(self, response: EventSourceResponse) -> None:
        """Sends until the end. Raises ConnectionResetError, or TimeoutError for a client that takes nothing."""
        while True:
            await self._news.wait()
            if self._has_ended:
                return
            self._news.clear()
            events, self._waiting = self._waiting, {}
            self._is_sending = True
            for name, text in events.items():
                await response.send(text, event=name or None)
            self._is_sending = False
