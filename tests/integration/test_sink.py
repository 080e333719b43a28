"""The benchmarks' stand-in for FCM: however its input is cut, it answers and notes every request once, in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.sink import Connection, Sink

_IDS = [str(UUID(int=number)) for number in range(1, 6)]


def _request(push_id: str | None) -> bytes:
    data = {} if push_id is None else {"push_id": push_id}
    body = orjson.dumps({"message": {"token": "t", "data": data}})
    head = f"POST /v1/projects/p/messages:send HTTP/1.1\r\nHost: x\r\ncontent-LENGTH:{len(body)}\r\n\r\n"
    return head.encode() + body


class _Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data


@given(cuts=st.sets(st.integers(1, len(_request(_IDS[0])) * len(_IDS) - 1)))
async def test_requests_are_told_apart_wherever_the_packets_end(cuts: set[int]) -> None:
    sink = Sink(latency=0)
    connection, wire = Connection(sink), _Wire()
    connection.connection_made(wire)
    sent = b"".join(map(_request, _IDS))
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(sent)], strict=True):
        connection.data_received(sent[start:end])
    assert sink.push_ids.decode() == "".join(_IDS)
    assert len(sink.arrived) == len(_IDS)
    assert wire.written.count(b"HTTP/1.1 200 OK") == len(_IDS)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of a sink that answers sends after 20 ms."""
    sink = Sink(latency=0.02)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(sink), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, object]]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    body: dict[str, object] = orjson.loads(await reader.readexactly(length))
    return int(head.split()[1]), body


async def test_answers_come_in_the_order_of_the_requests_after_the_latency(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.time_ns()
    writer.write(_request(_IDS[0]) + _request(None) + b"GET /report HTTP/1.1\r\nConnection: close\r\n\r\n")
    first, second = await _read_answer(reader), await _read_answer(reader)
    assert time.time_ns() - began >= 19_000_000
    assert [status for status, _ in (first, second)] == [200, 200]
    assert str(first[1]["name"]).startswith("projects/p/messages/")
    assert first[1] != second[1]

    status, report = await _read_answer(reader)
    assert status == 200
    assert report["push_ids"] == [_IDS[0], ""]
    arrived = report["arrived_ns"]
    assert isinstance(arrived, list)
    assert began <= arrived[0] <= arrived[1] <= time.time_ns()
    assert await reader.read() == b""  # closed, as was asked
    writer.close()


async def test_control_requests(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask(line: str, body: bytes = b"") -> tuple[int, dict[str, object]]:
        writer.write(f"{line} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        return await _read_answer(reader)

    status, token = await ask("POST /token", b"grant_type=x")
    assert (status, token["token_type"]) == (200, "Bearer")

    writer.write(_request(_IDS[0]))
    assert (await ask("POST /reset"))[0] == 200  # the answer to the send
    assert (await _read_answer(reader))[0] == 409  # that was owed when the reset came
    assert await ask("GET /count") == (200, {"requests": 1})
    assert (await ask("POST /reset?latency_ms=0"))[0] == 200
    assert await ask("GET /count") == (200, {"requests": 0})
    assert (await ask("GET /elsewhere"))[0] == 404

    writer.write(b"POST /token HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert (await _read_answer(reader))[0] == 411
    writer.close()
