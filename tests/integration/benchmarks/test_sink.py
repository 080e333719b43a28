"""The benchmarks' stand-in for FCM: however its input is cut, it answers and notes every request once, in order."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from uuid import UUID

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks import rig
from tests.benchmarks.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    SETTINGS,
    Http2Connection,
    frame,
)
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
    assert (await ask("POST /latency?ms=0"))[0] == 200
    writer.write(_request(_IDS[1]))
    assert (await _read_answer(reader))[0] == 200
    status, report = await ask("GET /report?first=1")
    assert (status, report["push_ids"]) == (200, [_IDS[1]])
    assert (await ask("POST /reset"))[0] == 200
    assert await ask("GET /count") == (200, {"requests": 0})
    assert (await ask("POST /latency?ms=soon"))[0] == 404
    assert (await ask("GET /elsewhere"))[0] == 404

    writer.write(b"POST /token HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert (await _read_answer(reader))[0] == 411
    writer.close()


def _stream(number: int, push_id: str, parts: int, padded: bool) -> bytes:
    """A POST by HTTP/2; what its header fields say is not looked at."""
    body = orjson.dumps({"message": {"data": {"push_id": push_id}}})
    size = len(body) // parts + 1
    frames = frame(HEADERS, END_HEADERS, number, b"\x83\x87")
    for at in range(0, len(body), size):
        part = body[at : at + size]
        last = END_STREAM if at + size >= len(body) else 0
        if padded:
            frames += frame(DATA, last | PADDED, number, bytes([3]) + part + bytes(3))
        else:
            frames += frame(DATA, last, number, part)
    return frames


@given(st.data())
async def test_http2_requests_are_told_apart_wherever_the_packets_end(data: st.DataObject) -> None:
    sink = Sink(latency=0)
    connection, wire = Http2Connection(sink), _Wire()
    connection.connection_made(wire)
    greeting = len(wire.written)
    sent = PREFACE + frame(SETTINGS, 0, 0) + frame(PING, 0, 0, b"12345678")
    for number, push_id in enumerate(_IDS):
        sent += _stream(2 * number + 1, push_id, data.draw(st.integers(1, 4)), data.draw(st.booleans()))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sent) - 1))))
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        connection.data_received(sent[start:end])
    assert sink.push_ids.decode() == "".join(_IDS)
    answers = wire.written[greeting:]
    assert answers.startswith(frame(SETTINGS, ACK, 0) + frame(PING, ACK, 0, b"12345678"))
    assert answers.count(b"/messages/0:") == len(_IDS)


@pytest.mark.parametrize("http2", [False, True])
async def test_over_tls_clients_choose_the_protocol(http2: bool) -> None:
    with rig.sink(latency_ms=1, tls=True) as sink:
        context = ssl.create_default_context(cafile=sink.trust["SSL_CERT_FILE"])
        async with httpx.AsyncClient(http2=http2, verify=context, trust_env=False) as client:
            bodies = [{"message": {"data": {"push_id": push_id}}} for push_id in _IDS]
            answers = await asyncio.gather(*(client.post(sink.sends, json=body) for body in bodies))
        assert {answer.http_version for answer in answers} == {"HTTP/2" if http2 else "HTTP/1.1"}
        assert {answer.status_code for answer in answers} == {200}
        assert all("/messages/" in answer.json()["name"] for answer in answers)
        assert {one.push_id for one in sink.report()} == set(_IDS)
