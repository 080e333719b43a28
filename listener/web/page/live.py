"""Server-sent events: one sample a second, rendered once for everybody who watches; none while nobody watches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from listener.web.page.faults import tell_fault

MOST = 16
"""The most streams at the same time. A browser keeps one stream for each visible tab."""


class Streams:
    """The open streams, and the events that are sent on them.

    Args:
        sample: returns the data of each event, by the event's name; '' is an event without a name.
        watched: an event that is set while a stream is open.
        most: the most streams at the same time.
        interval: seconds between two samples.
        ping: seconds between two comments, which keep proxies from closing a stream.
        patience: seconds within which a client must take what is sent. Otherwise its stream is closed.
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
        """Answers a GET with events until the client or this process ends the stream.

        The answer is 503 if too many people watch, or this process is ending.
        """
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
            pass  # the client has closed the connection, or took nothing for too long
        finally:
            self._drop(stream)
        return response

    def close(self) -> None:
        """Ends all streams at once. No new stream begins after this."""
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
        """Drops the streams whose client has closed the connection. Otherwise they would keep a place until the next
        event is sent.
        """
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
    """The stream of one client, with the events that are still to be sent: of each name only the newest."""

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
        """Queues events. A newer event with the same name replaces one that was not sent yet."""
        if events:
            self._waiting.update(events)
            self._news.set()

    def end(self) -> None:
        """Stops sending. Aborts the connection if a send is in progress, because its client may take nothing."""
        self._has_ended = True
        self._news.set()
        if self._is_sending and self._request.transport is not None:
            self._request.transport.abort()

    async def send_to(self, response: EventSourceResponse) -> None:
        """Sends events until ``end``. Raises ConnectionResetError, or TimeoutError if the client takes nothing."""
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
