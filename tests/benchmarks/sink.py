"""A stand-in for FCM that takes any load: it believes every request and notes when it came.

    python -m tests.benchmarks.sink --latency-ms 50

prints its address, and serves until SIGTERM, or the end of the pipe that is its standard input. With ``--tls`` it
prints a second address, for sends over TLS, and the file of the certificate to trust; with ``--wire`` as well that
address is at the far end of ``tests.benchmarks.wire``, which has to run. Over HTTP/1.1:

- ``POST /v1/projects/{project}/messages:send``: 200 with a message's name, after the latency
- ``POST /token``: an access token, whatever is asked
- ``GET /count``: ``{"requests": n}``, sends since the last reset
- ``GET /report``: ``{"arrived_ns": [...], "push_ids": [...]}``, one of each for each send, in order of arrival;
  the times are Unix time in nanoseconds, by the clock that Postgres' clock_timestamp() shows on this machine;
  ``?first=1000`` leaves out the first thousand
- ``POST /reset``: forget them; 409 while answers are owed
- ``POST /latency?ms=5``: from now on answer after so long; who waits already is not overtaken

Over TLS sends may come by HTTP/2 as well, see ``tests.benchmarks.http2``.

The emulator (``push-listener emulator``) is the one that is true to FCM; this one is fast.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
import sys
import tempfile
import time
from array import array
from collections import deque
from pathlib import Path
from typing import Protocol, cast

import click
import orjson
import uvloop

from tests.benchmarks import wire
from tests.benchmarks.http2 import Http2Connection
from tests.support.servers import Tls, make_tls

_MOST_UNREAD = 1 << 20
"""Bytes of one request, head and body."""

_UUID = 36
"""Characters of a push id."""
_NO_ID = b" " * _UUID

_FIELDS = re.compile(rb"\r\n(content-length|transfer-encoding|connection):[ \t]*([^\r\n]*)", re.IGNORECASE)
_ID_KEY = b'"push_id":"'

# The header fields that Google's front end adds, without those that depend on the connection.
_HEAD = (
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
)
_BODY = b'{\n  "name": "projects/%s/messages/0:%016d%%%016x"\n}\n'
_TOKEN = {"access_token": "ya29.c.sink", "expires_in": 3599, "token_type": "Bearer"}


def _answer(status: bytes, body: object) -> bytes:
    content = orjson.dumps(body)
    return b"HTTP/1.1 %b\r\nContent-Type: application/json; charset=UTF-8\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(content),
        content,
    )


class Client(Protocol):
    """Who has asked, and is owed answers."""

    owed: int
    """Answers that wait for their time."""

    def write(self, answer: bytes, *, close: bool = False) -> None:
        """Sends answers, if anybody is still there to hear them."""
        ...


class Sink:
    """What all connections share: the latency, the answers that are owed, and what has arrived."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.arrived = array("q")
        self.push_ids = bytearray()
        self._loop = asyncio.get_running_loop()
        self._owed: deque[tuple[float, Client, bytes, bool]] = deque()

    def note(self, now: int, body: bytes, project: bytes) -> bytes:
        """Takes a send; returns the body of its answer."""
        self.arrived.append(now)
        found = body.find(_ID_KEY)
        start = found + len(_ID_KEY)
        push_id = body[start : start + _UUID] if found >= 0 else b""
        self.push_ids += push_id if len(push_id) == _UUID else _NO_ID
        number = len(self.arrived)
        return _BODY % (project, number, number)

    def answer(self, client: Client, answer: bytes, *, close: bool = False, at_once: bool = False) -> None:
        """Writes the answer after the latency, and never before an earlier one to the same client."""
        if (at_once or self.latency == 0) and not client.owed:
            client.write(answer, close=close)
            return
        client.owed += 1
        due = self._loop.time() + self.latency
        self._owed.append((due, client, answer, close))
        if len(self._owed) == 1:
            self._loop.call_at(due, self._pay)

    def _pay(self) -> None:
        """Writes all answers that are due by now, with one timer for as many as there are."""
        soon = self._loop.time() + 0.0005  # uvloop's timers count milliseconds
        owed = self._owed
        due: dict[Client, list[bytes]] = {}
        closing = set()
        while owed and owed[0][0] <= soon:
            _, client, answer, close = owed.popleft()
            client.owed -= 1
            due.setdefault(client, []).append(answer)
            if close:
                closing.add(client)
        for client, answers in due.items():
            client.write(b"".join(answers), close=client in closing)
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
                first = int(query.removeprefix(b"first=") or 0)
                ids = self.push_ids[first * _UUID :].decode("ascii", "replace")
                each = [ids[at : at + _UUID].strip() for at in range(0, len(ids), _UUID)]
                return _answer(b"200 OK", {"arrived_ns": self.arrived[first:].tolist(), "push_ids": each})
            case b"POST", b"/reset":
                if self._owed:
                    return _answer(b"409 Conflict", {"error": "answers are owed"})
                self.arrived = array("q")
                self.push_ids = bytearray()
                return _answer(b"200 OK", {})
            case b"POST", b"/latency" if wanted := re.fullmatch(rb"ms=(\d+(?:\.\d+)?)", query):
                self.latency = float(wanted[1]) / 1000
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
        if path.endswith(b"/messages:send"):
            content = sink.note(now, body, path[len(b"/v1/projects/") : -len(b"/messages:send")])
            sink.answer(self, _HEAD % len(content) + content, close=close)
        else:
            sink.answer(self, sink.control(method, path), close=close, at_once=True)

    def write(self, answer: bytes, *, close: bool = False) -> None:
        """See ``Client``."""
        if self._transport is not None:
            self._transport.write(answer)
            if close:
                self._transport.close()

    def _refuse(self, status: bytes) -> None:
        self._unread = b""
        self.write(_answer(status, {"error": status.decode()}), close=True)


class _Door(asyncio.Protocol):
    """A new connection over TLS, that has said which protocol it speaks."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tls = transport.get_extra_info("ssl_object")
        speaks = Http2Connection if tls.selected_alpn_protocol() == "h2" else Connection
        protocol = speaks(self._sink)
        cast(asyncio.Transport, transport).set_protocol(protocol)
        protocol.connection_made(transport)


async def _serve(port: int, latency: float, tls: Tls | None, *, wired: bool) -> None:
    loop = asyncio.get_running_loop()
    sink = Sink(latency)
    server = await loop.create_server(lambda: Connection(sink), "127.0.0.1", port, backlog=4096)
    addresses = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    if tls is not None:
        tls.server.set_alpn_protocols(["h2", "http/1.1"])
        here, named = (wire.NEAR, wire.FAR) if wired else ("127.0.0.1", "localhost")
        secure = await loop.create_server(lambda: _Door(sink), here, backlog=4096, ssl=tls.server)
        addresses += f" https://{named}:{secure.sockets[0].getsockname()[1]} {tls.ca_file}"
    print(addresses, flush=True)
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
@click.option("--tls", is_flag=True, help="Take sends over TLS as well.")
@click.option("--wire", "wired", is_flag=True, help="Take them at the end of a slow wire.")
def main(port: int, latency_ms: float, tls: bool, wired: bool) -> None:
    """A fast stand-in for FCM, for loads. Prints its address."""
    with tempfile.TemporaryDirectory() as directory:
        host = wire.FAR if wired else "localhost"
        made = make_tls(Path(directory), host=host) if tls else None
        uvloop.run(_serve(port, latency_ms / 1000, made, wired=wired))


if __name__ == "__main__":
    main()
