"""The sink's HTTP/2: as much of it as POSTs with small bodies and small answers need.

Header fields are never decoded: whatever is asked is a send, and believed. The client's window is not looked at: the
answers to all streams that may be open together are a sixth of what it is at the least.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol, cast

# Source: RFC 9113, sections 4.1, 6 and 7.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
_FRAME_HEAD = 9
_MAX_CONCURRENT_STREAMS = 3

_STREAMS = 100
"""That a client may have open at once, as at Google's front end."""
_MORE = 1 << 20
"""Bytes of bodies after which the client is allowed as many more."""

# Source: RFC 7541, appendix A: 8 is ":status 200", 31 "content-type", 59 "vary", 54 "server".
_FIELDS = b"\x88" + b"".join(
    bytes([0x0F, index - 15, len(value)]) + value
    for index, value in (
        (31, b"application/json; charset=UTF-8"),
        (59, b"Origin"),
        (59, b"X-Origin"),
        (59, b"Referer"),
        (54, b"scaffolding on HTTPServer2"),
    )
)


class Taker(Protocol):
    """The part of the sink that is needed here."""

    def note(self, now: int, body: bytes, project: bytes) -> bytes: ...

    def answer(self, client: Http2Connection, answer: bytes) -> None: ...


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame as it goes over the wire."""
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head + payload


class Http2Connection(asyncio.Protocol):
    """One connection: cuts what comes into frames, and puts the bodies of its streams together."""

    def __init__(self, sink: Taker) -> None:
        self._sink = sink
        self._unread = b""
        self._greeted = False
        self._bodies: dict[int, bytes] = {}
        self._taken = 0
        self._transport: asyncio.Transport | None = None
        self.owed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        limit = _MAX_CONCURRENT_STREAMS.to_bytes(2, "big") + _STREAMS.to_bytes(4, "big")
        more = _MORE.to_bytes(4, "big")
        self._transport.write(frame(SETTINGS, 0, 0, limit) + frame(WINDOW_UPDATE, 0, 0, more))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        now = time.time_ns()
        data = self._unread + data if self._unread else data
        at = 0
        if not self._greeted:
            if len(data) < len(PREFACE):
                self._unread = data
                return
            self._greeted, at = True, len(PREFACE)
        while len(data) - at >= _FRAME_HEAD:
            body = at + _FRAME_HEAD
            end = body + int.from_bytes(data[at : at + 3], "big")
            if len(data) < end:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : body], "big") & 0x7FFFFFFF
            self._frame(now, kind, flags, stream, data[body:end])
            at = end
        self._unread = data[at:]

    def _frame(self, now: int, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._taken += len(payload)
            if self._taken >= _MORE:
                self.write(frame(WINDOW_UPDATE, 0, 0, self._taken.to_bytes(4, "big")))
                self._taken = 0
            if flags & PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            before = self._bodies.pop(stream, b"")
            if flags & END_STREAM:
                self._take(now, stream, before + payload)
            else:
                self._bodies[stream] = before + payload
        elif kind == HEADERS:
            if flags & END_STREAM:
                self._take(now, stream, b"")
        elif kind == SETTINGS:
            if not flags & ACK:
                self.write(frame(SETTINGS, ACK, 0))
        elif kind == PING:
            if not flags & ACK:
                self.write(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            self._bodies.pop(stream, None)

    def _take(self, now: int, stream: int, body: bytes) -> None:
        content = self._sink.note(now, body, b"sink")
        head = frame(HEADERS, END_HEADERS, stream, _FIELDS)
        self._sink.answer(self, head + frame(DATA, END_STREAM, stream, content))

    def write(self, answer: bytes, *, close: bool = False) -> None:
        """See ``tests.benchmarks.sink.Client``."""
        if self._transport is not None:
            self._transport.write(answer)
