"""HTTP/2: what is sent again and what is not, how requests share connections, and connections that die."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import pytest
from h2.errors import ErrorCodes

from listener.fcm.fault import SendFault
from listener.fcm.transports import http2, http2_pool
from listener.fcm.transports.base import Outgoing, Response
from listener.fcm.transports.http2 import Http2Transport
from listener.fcm.transports.http2_pool import OPENING_LIMIT, STREAMS
from tests.support.http2 import Http2
from tests.support.servers import BODY, Tls, forget_proxies, make_tls, reset, tcp_server

HEADERS = {"Authorization": "Bearer abc", "Content-Type": "application/json"}

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"), protocol="h2")


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, a new connection gets one request until that is answered."""
    monkeypatch.setattr(http2_pool, "ASSUMED_OPEN_AFTER", 60.0)


@pytest.fixture(autouse=True)
def environment(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.ca_file))


class Client:
    """A transport to a local port."""

    def __init__(self, port: int) -> None:
        url = f"https://localhost:{port}/v1/projects/p/messages:send"
        self.transport = Http2Transport(url, connect_timeout=5.0, timeout=10.0)

    async def post(self) -> Response:
        return await self.transport.post(HEADERS, Outgoing(lambda: b'{"message":{}}'))

    async def fault(self) -> tuple[str, bool]:
        """The code of the fault that a request ends with, and whether it may have been carried out."""
        with pytest.raises(SendFault) as raised:
            await self.post()
        return raised.value.code, raised.value.ambiguous


@asynccontextmanager
async def served_by(handle: Callable[[Reader, Writer], Awaitable[None]], tls: Tls) -> AsyncIterator[Client]:
    async with tcp_server(handle, tls.server) as port:
        client = Client(port)
        try:
            yield client
        finally:
            await client.transport.close()


# --- sent again: only requests that were certainly not carried out ------------------------------------------------


async def test_request_that_was_refused_is_sent_again(tls: Tls) -> None:
    requests = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal requests
        connection = Http2(reader, writer)
        while True:
            stream = await connection.request()
            requests += 1
            if requests == 1:
                connection.reset(stream, ErrorCodes.REFUSED_STREAM)
            else:
                connection.answer(stream)

    async with served_by(handle, tls) as client:
        assert (await client.post()).body == BODY
    assert requests == 2


async def test_request_that_is_refused_for_ever_is_a_fault(tls: Tls) -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer)
        while True:
            connection.reset(await connection.request(), ErrorCodes.REFUSED_STREAM)

    async with served_by(handle, tls) as client:
        assert await client.fault() == ("RESET", True)


async def test_request_that_a_closing_connection_did_not_take_is_sent_over_another(tls: Tls) -> None:
    connections = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        connection = Http2(reader, writer)
        stream = await connection.request()
        if connections == 1:
            connection.go_away(last_stream=0)
            await reader.read()
        else:
            connection.answer(stream)
            await connection.request()

    async with served_by(handle, tls) as client:
        assert (await client.post()).body == BODY
    assert connections == 2


async def test_request_on_a_connection_that_is_going_away_is_still_answered(tls: Tls) -> None:
    connections = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        connection = Http2(reader, writer)
        stream = await connection.request()
        connection.answer(stream)
        stream = await connection.request()
        connection.go_away(last_stream=stream)
        connection.answer(stream)

    async with served_by(handle, tls) as client:
        for _ in range(4):
            assert (await client.post()).body == BODY
    assert connections == 2


def after_request(act: Callable[[Http2, int, Writer], None]) -> Callable[[Reader, Writer], Awaitable[None]]:
    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer)
        act(connection, await connection.request(), writer)
        await writer.drain()

    return handle


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda connection, stream, writer: None, id="hang-up"),
        pytest.param(lambda connection, stream, writer: reset(writer), id="connection reset"),
        pytest.param(lambda connection, stream, writer: connection.go_away(stream), id="went away with it"),
        pytest.param(
            lambda connection, stream, writer: connection.reset(stream, ErrorCodes.INTERNAL_ERROR),
            id="stream reset",
        ),
        pytest.param(
            lambda connection, stream, writer: connection.reset(stream, ErrorCodes.CANCEL),
            id="stream cancelled",
        ),
        pytest.param(
            lambda connection, stream, writer: connection.answer(stream, 404, b'{"error"', whole=False),
            id="half an error body",
        ),
        pytest.param(
            lambda connection, stream, writer: writer.write(b"HTTP/1.1 400 Bad\r\n\r\n"), id="not HTTP/2"
        ),
    ],
)
async def test_request_that_may_have_been_carried_out_is_not_sent_again(
    act: Callable[[Http2, int, Writer], None], tls: Tls
) -> None:
    requests = 0

    def counted(connection: Http2, stream: int, writer: Writer) -> None:
        nonlocal requests
        requests += 1
        act(connection, stream, writer)

    async with served_by(after_request(counted), tls) as client:
        assert await client.fault() == ("RESET", True)
    assert requests == 1


async def test_acceptance_counts_even_if_its_body_breaks_off(tls: Tls) -> None:
    handle = after_request(lambda connection, stream, writer: connection.answer(stream, whole=False))
    async with served_by(handle, tls) as client:
        assert (await client.post()).status == 200


# --- connections ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patience")
async def test_requests_in_flight_share_connections_without_waiting(tls: Tls) -> None:
    in_flight = 5 * STREAMS
    held: Counter[Http2] = Counter()
    most: Counter[Http2] = Counter()
    all_there = asyncio.Event()
    all_there.set()
    answers: list[asyncio.Task[None]] = []

    async def answer(connection: Http2, stream: int) -> None:
        held[connection] += 1
        most[connection] = max(most[connection], held[connection])
        if held.total() == in_flight:
            all_there.set()
        await all_there.wait()
        held[connection] -= 1
        connection.answer(stream)

    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer)
        while True:
            answers.append(asyncio.create_task(answer(connection, await connection.request())))

    async with served_by(handle, tls) as client:
        await asyncio.gather(*(client.post() for _ in range(in_flight)))
        all_there.clear()
        responses = await asyncio.gather(*(client.post() for _ in range(in_flight)))
        assert {response.status for response in responses} == {200}
    assert max(most.values()) <= STREAMS
    assert len(most) <= OPENING_LIMIT


@pytest.mark.usefixtures("patience")
async def test_burst_from_cold_opens_few_connections(tls: Tls) -> None:
    connections = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        connection = Http2(reader, writer)
        while True:
            connection.answer(await connection.request())

    async with served_by(handle, tls) as client:
        await asyncio.gather(*(client.post() for _ in range(5 * STREAMS)))
    assert connections <= OPENING_LIMIT


@pytest.mark.usefixtures("patience")
async def test_burst_after_an_outage_opens_few_connections(tls: Tls) -> None:
    connections = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        connection = Http2(reader, writer)
        while True:
            connection.answer(await connection.request())

    async with tcp_server(handle, tls.server) as port:
        client = Client(port)
        await client.post()
    while await client.fault() != ("CONNECT", False):
        pass
    connections = 0
    async with tcp_server(handle, tls.server, port=port):
        await asyncio.gather(*(client.post() for _ in range(5 * STREAMS)))
    assert connections <= OPENING_LIMIT
    await client.transport.close()


async def test_requests_that_hang_do_not_delay_others(tls: Tls) -> None:
    hanging = 0
    all_hang = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal hanging
        connection = Http2(reader, writer)
        while True:
            stream = await connection.request()
            if hanging < OPENING_LIMIT:
                hanging += 1
                if hanging == OPENING_LIMIT:
                    all_hang.set()
            else:
                connection.answer(stream)

    async with served_by(handle, tls) as client:
        hang = [asyncio.create_task(client.post()) for _ in range(OPENING_LIMIT)]
        await all_hang.wait()
        assert (await client.post()).status == 200
        assert not any(task.done() for task in hang)
        for task in hang:
            task.cancel()
        await asyncio.wait(hang)


async def test_dead_connection_is_found_and_replaced(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "PING", timedelta(seconds=0.1))
    connections = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        connection = Http2(reader, writer, acknowledges=connections > 1)
        stream = await connection.request()
        if connections > 1:
            connection.answer(stream)
        with suppress(asyncio.IncompleteReadError):
            await connection.request()

    async with served_by(handle, tls) as client:
        assert await client.fault() == ("RESET", True)
        assert (await client.post()).status == 200
    assert connections == 2


async def test_cancelled_request_disturbs_no_other(tls: Tls) -> None:
    arrived = asyncio.Queue[int]()
    go_on = asyncio.Event()
    connections = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        connection = Http2(reader, writer)
        connection.answer(await connection.request())
        streams = [await connection.request() for _ in range(50)]
        arrived.put_nowait(len(streams))
        await go_on.wait()
        for stream in streams:
            connection.answer(stream)
        connection.answer(await connection.request())

    async with served_by(handle, tls) as client:
        await client.post()
        tasks = [asyncio.create_task(client.post()) for _ in range(50)]
        await arrived.get()
        for task in tasks[:49]:
            task.cancel()
        await asyncio.wait(tasks[:49])
        go_on.set()
        assert (await tasks[49]).status == 200
        assert (await client.post()).status == 200
    assert connections == 1
