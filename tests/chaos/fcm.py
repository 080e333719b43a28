"""The emulator, with a record of every exchange from its beginning to its end, and of who made it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from aiohttp import web

from listener.emulator import Emulator
from listener.emulator.received import Received


@dataclass(slots=True)
class Exchange:
    """One request to ``messages:send`` for a push."""

    port: int
    """Of the link through which it came; each listener process has one of its own."""
    push_id: UUID
    target: str
    began: float
    """Unix time in seconds, as are all times here."""
    accepted: bool
    status: int | None
    """None: there was no answer."""
    name: str | None
    """FCM's name for the message, if it was accepted."""
    hiding: tuple[object, ...]
    """What makes a device replace one copy by another: tag, collapse ids, topic, and the id in the data."""
    silent: bool
    """The emulator kept the answer back on purpose."""
    ended: float | None = None


_current: ContextVar[list[Exchange]] = ContextVar("_current")
_port: ContextVar[int] = ContextVar("_port")


class Fcm(Emulator):
    """An emulator that records exchanges. ``on_request`` hears of each as it comes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(remember=1000, **settings)
        self.exchanges: list[Exchange] = []
        self.strangers = 0
        """Requests that carry no push id: questions whether FCM is there."""
        self.on_request: Callable[[Exchange], None] = lambda _: None

    async def _send(self, request: web.BaseRequest, project: str) -> web.StreamResponse:
        mine: list[Exchange] = []
        _current.set(mine)
        _port.set(int(request.host.rpartition(":")[2]))
        try:
            return await super()._send(request, project)
        finally:
            for exchange in mine:
                exchange.ended = time.time()

    def _record(self, sent: Any, verdict: Any, received_at: float, at: float) -> Received:
        record = super()._record(sent, verdict, received_at, at)
        if record.push_id is None or record.target is None:
            self.strangers += 1
            return record
        message = sent.message
        exchange = Exchange(
            port=_port.get(),
            push_id=UUID(record.push_id),
            target=record.target,
            began=received_at,
            accepted=record.accepted,
            status=record.status,
            name=record.name,
            hiding=(
                record.push_id,
                _at(message, "android", "notification", "tag"),
                _at(message, "apns", "headers", "apns-collapse-id"),
                _at(message, "webpush", "headers", "Topic"),
                _at(message, "webpush", "notification", "tag"),
            ),
            silent=record.status is None,
        )
        self.exchanges.append(exchange)
        _current.get().append(exchange)
        self.on_request(exchange)
        return record


def _at(value: Any, *path: str) -> object:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
