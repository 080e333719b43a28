"""A stand-in for FCM that takes any load: it believes every request and notes when it came.

    python -m tests.benchmarks.sink --latency-ms 50

prints its address, and serves until SIGTERM, or the end of the pipe that is its standard input. Over HTTP/1.1
without TLS:

- ``POST /v1/projects/{project}/messages:send``: 200 with a message's name, after the latency
- ``POST /token``: an access token, whatever is asked
- ``GET /count``: ``{"requests": n}``, sends since the last reset
- ``GET /report``: ``{"arrived_ns": [...], "push_ids": [...]}``, one of each for each send, in order of arrival;
  the times are Unix time in nanoseconds, by the clock that Postgres' clock_timestamp() shows on this machine
- ``POST /reset?latency_ms=5``: forget them, and from now on answer after so long; 409 while answers are owed

The emulator (``push-listener emulator``) is the one that is true to FCM; this one is fast.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
import sys
import time
from array import array
from collections import deque
from typing import cast

import click
import orjson
import uvloop

_MOST_UNREAD = 1 << 20
"""Bytes of one request, head and body."""

_UUID = 36
"""Characters of a push id."""
_NO_ID = b" " * _UUID

_FIELDS = re.compile(rb"\r\n(content-length|transfer-encoding|connection):[ \t]*([^\r\n]*)", re.IGNORECASE)
_ID_KEY = b'"push_id":"'

# The header fields that Google's front end adds, without those that depend on the connection.
_SENT = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: application/json; charset=UTF-8\r\n"
    b"Vary: Origin\r\n"
    b"Vary: X-Origin\r\n"
    b"Vary: Referer\r\n"
    b"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    b"Server: scaffolding on HTTPServer2\r\n"
    b"X-XSS-Protection: 0\r\n"
    b"X-Frame-Options: SAMEORIGIN\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
    b"Content-Length: %d\r\n"
    b"\r\n"
    b'{\n  "name": "projects/%s/messages/0:%016d%%%016x"\n}\n'
)
_BODY_BESIDE_PROJECT = len(_SENT[_SENT.index(b"{\n") :] % (b"", 0, 0))
_TOKEN = {"access_token": "ya29.c.sink", "expires_in": 3599, "token_type": "Bearer"}


def _answer(status: bytes, body: object) -> bytes:
    content = orjson.dumps(body)
    return b"HTTP/1.1 %b\r\nContent-Type: application/json; charset=UTF-8\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(content),
        content,
    )


class Sink:
    """What all connections share: the latency, the answers that are owed, and what has arrived."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.arrived = array("q")
        self.push_ids = bytearray()
        self._loop = asyncio.get_running_loop()
        self._owed: deque[tuple[float, Connection, bytes, bool]] = deque()

    def later(self, connection: Connection, answer: bytes, close: bool) -> None:
        """Writes the answer after the latency. That is the same for all, so that first come is first due."""
        connection.owed += 1
        due = self._loop.time() + self.latency
        self._owed.append((due, connection, answer, close))
        if len(self._owed) == 1:
            self._loop.call_at(due, self._pay)

    def _pay(self) -> None:
        """Writes all answers that are due by now, with one timer for as many as there are."""
        soon = self._loop.time() + 0.0005  # uvloop's timers count milliseconds
        owed = self._owed
        while owed and owed[0][0] <= soon:
            _, connection, answer, close = owed.popleft()
            connection.owed -= 1
            connection.write(answer, close)
        if owed:
            self._loop.call_at(owed[0][0], self._pay)

    def control(self, method: bytes, path: bytes) -> bytes:
        """The answer to everything but a send."""
        path, _, query = path.partition(b"?")
        match method, path:
            case b"POST", b"/token":
                return _answer(b"200 OK", _TOKEN)
            case b"GET", b"/count":
                return _answer(b"200 OK", {"requests": len(self.arrived)})
            case b"GET", b"/report":
                ids = self.push_ids.decode("ascii", "replace")
                each = [ids[at : at + _UUID].strip() for at in range(0, len(ids), _UUID)]
                return _answer(b"200 OK", {"arrived_ns": self.arrived.tolist(), "push_ids": each})
            case b"POST", b"/reset":
                if self._owed:
                    return _answer(b"409 Conflict", {"error": "answers are owed"})
                if latency := re.fullmatch(rb"latency_ms=(\d+(?:\.\d+)?)", query):
                    self.latency = float(latency[1]) / 1000
                self.arrived = array("q")
                self.push_ids = bytearray()
                return _answer(b"200 OK", {})
            case _:
                return _answer(b"404 Not Found", {"error": "no such thing here"})


class Connection(asyncio.Protocol):
    """One keep-alive connection: cuts what comes into requests, wherever the packets begin and end."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._unread = b""
        self._transport: asyncio.Transport | None = None
        self.owed = 0
        """Answers of this connection that wait for their time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        now = time.time_ns()
        if self._unread:
            data = self._unread + data
        at = 0
        while (head_ends := data.find(b"\r\n\r\n", at)) >= 0:
            length, close = 0, False
            for name, value in _FIELDS.findall(data, at, head_ends):
                lower = name.lower()
                if lower == b"content-length":
                    length = int(value)
                elif lower == b"connection":
                    close = value.strip().lower() == b"close"
                else:
                    self._refuse(b"411 Length Required")
                    return
            body = head_ends + 4
            end = body + length
            if len(data) < end:
                break
            method, path, _ = data[at : data.find(b"\r\n", at)].split(b" ", 2)
            self._take(now, method, path, data[body:end], close)
            at = end
        self._unread = data[at:]
        if len(self._unread) > _MOST_UNREAD:
            self._refuse(b"413 Content Too Large")

    def _take(self, now: int, method: bytes, path: bytes, body: bytes, close: bool) -> None:
        sink = self._sink
        if not path.endswith(b"/messages:send"):
            answer, wait = sink.control(method, path), False
        else:
            sink.arrived.append(now)
            found = body.find(_ID_KEY)
            start = found + len(_ID_KEY)
            push_id = body[start : start + _UUID] if found >= 0 else b""
            sink.push_ids += push_id if len(push_id) == _UUID else _NO_ID
            project, number = path[len(b"/v1/projects/") : -len(b"/messages:send")], len(sink.arrived)
            answer = _SENT % (_BODY_BESIDE_PROJECT + len(project), project, number, number)
            wait = sink.latency > 0
        # An answer never overtakes an earlier one of the same connection.
        if wait or self.owed:
            sink.later(self, answer, close)
        else:
            self.write(answer, close)

    def write(self, answer: bytes, close: bool) -> None:
        """Sends an answer, if anybody is still there to hear it."""
        if self._transport is not None:
            self._transport.write(answer)
            if close:
                self._transport.close()

    def _refuse(self, status: bytes) -> None:
        self._unread = b""
        self.write(_answer(status, {"error": status.decode()}), close=True)


async def _serve(port: int, latency: float) -> None:
    loop = asyncio.get_running_loop()
    sink = Sink(latency)
    server = await loop.create_server(lambda: Connection(sink), "127.0.0.1", port, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    stdin = sys.stdin.fileno()
    if stat.S_ISFIFO(os.fstat(stdin).st_mode):  # whoever started it may go without a word
        loop.add_reader(stdin, lambda: None if os.read(stdin, 4096) else end.set())
    await end.wait()
    server.close()


@click.command()
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="0: any that is free.")
@click.option("--latency-ms", default=0.0, type=click.FloatRange(0), help="Before each answer to a send.")
def main(port: int, latency_ms: float) -> None:
    """A fast stand-in for FCM, for loads. Prints its address."""
    uvloop.run(_serve(port, latency_ms / 1000))


if __name__ == "__main__":
    main()
