"""How fast the sink itself is: a client that does as good as nothing, on bare sockets.

    python -m tests.benchmarks.ceiling

Each connection has one request under way, as an HTTP client's pool has, and sends the same bytes again at each
answer. Half of the machine goes to the client: what is shown is less than the sink can do.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast
from urllib.parse import urlsplit

import click
import orjson
import uvloop

from tests.benchmarks import rig


class _Client(asyncio.Protocol):
    def __init__(self, request: bytes, until: float) -> None:
        self._request = request
        self._until = until
        self._answer = b""
        self._length = 0
        self.over = asyncio.get_running_loop().create_future()
        self.answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not self._length:  # every answer is as long as the first
            head, _, _ = self._answer.partition(b"\r\n\r\n")
            self._length = len(head) + 4 + int(head.rpartition(b"Content-Length: ")[2])
        if len(self._answer) < self._length:
            return
        self._answer = b""
        self.answers += 1
        if time.monotonic() < self._until:
            self._transport.write(self._request)
        else:
            self._transport.close()
            self.over.set_result(None)


async def _load(url: str, connections: int, seconds: float) -> int:
    host = urlsplit(url)
    data = {"push_id": "00000000-0000-4000-8000-000000000000", "ride": "00000042", "screen": "ride"}
    notification = {"title": "Your ride is waiting", "body": "A blue estate car" * 5}
    message = {
        "token": "t" * 163,
        "notification": notification,
        "data": data,
        "android": {"priority": "HIGH"},
    }
    body = orjson.dumps({"message": message})
    request = (
        f"POST /v1/projects/{rig.PROJECT}/messages:send HTTP/1.1\r\nHost: {host.netloc}\r\n"
        "User-Agent: ceiling\r\nAuthorization: Bearer ya29.c.sink\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    assert host.hostname is not None
    assert host.port is not None
    until = time.monotonic() + seconds
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: _Client(request, until), host.hostname, host.port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(client.over for client in clients))
    return sum(client.answers for client in clients)


def measure(latency_ms: float, connections: int, seconds: float) -> dict[str, float]:
    """One run."""
    with rig.sink(latency_ms, connections=connections) as sink:
        cpu = -rig.cpu_seconds(sink.pid)
        answers = uvloop.run(_load(sink.url, connections, seconds))
        cpu += rig.cpu_seconds(sink.pid)
        arrivals = sink.report()
    if len(arrivals) != answers:
        raise rig.BenchmarkFailed(f"the sink counts {len(arrivals)} requests, the client {answers} answers")
    return {
        "requests_per_s": answers * 1e9 / (arrivals[-1].at_ns - arrivals[0].at_ns),
        "requests_per_cpu_s": answers / cpu,
    }


@click.command()
@click.option("--latency-ms", default=50.0, show_default=True, type=click.FloatRange(0))
@click.option("--connections", default=1000, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(0.1, 60))
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def main(latency_ms: float, connections: int, seconds: float, runs: int, as_json: bool) -> None:
    """The most that the sink answers, so that it is known not to be what a benchmark measures."""
    measured = rig.repeat(runs, lambda: measure(latency_ms, connections, seconds))
    lines = [
        ("requests_per_s", "requests a second", ",.0f"),
        ("requests_per_cpu_s", "requests per CPU-second of the sink", ",.0f"),
    ]
    rig.show(
        f"The sink alone, answering after {latency_ms:g} ms, {connections:,} connections",
        measured,
        lines,
        as_json,
    )


if __name__ == "__main__":
    main()
