"""HTTP/2: what is sent again and what is not, how requests share connections, and connections that die."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import hpack
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from listener.fcm.fault import SendFault
from listener.fcm.transports import direct, http2_connection
from listener.fcm.transports.base import ANSWER_LIMIT, Outgoing, Response
from listener.fcm.transports.direct import DirectTransport
from listener.fcm.transports.http2_connection import STREAMS, frame
from tests.support.http2 import Http2
from tests.support.servers import BODY, Tls, answer, forget_proxies, make_tls, read_request, reset, tcp_server
from tests.support.service import PATIENCE

HEADERS = {"Authorization": "Bearer abc", "Content-Type": "application/json"}

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"), protocol="h2")


@pytest.fixture(autouse=True)
def environment(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.ca_file))


class Client:
    """A transport to a local port."""

    def __init__(self, port: int, timeout: float = PATIENCE) -> None:
        url = f"https://localhost:{port}/v1/projects/p/messages:send"
        self.transport = DirectTransport(url, connect_timeout=timeout / 2, timeout=timeout)

    async def post(
        self, body: bytes = b'{"message":{}}', *, is_high: bool = False, headers: Mapping[str, str] = HEADERS
    ) -> Response:
        return await self.transport.post(headers, Outgoing(lambda: body, is_high=is_high))

    async def fault(self) -> tuple[str, bool]:
        """The code of the fault that a request ends with, and whether it may have been carried out."""
        with pytest.raises(SendFault) as raised:
            await self.post()
        return raised.value.code, raised.value.ambiguous


@asynccontextmanager
async def served_by(
    handle: Callable[[Reader, Writer], Awaitable[None]],
    tls: Tls,
    *,
    timeout: float = PATIENCE,  # noqa: ASYNC109
) -> AsyncIterator[Client]:
    async with tcp_server(handle, tls.server) as port:
        client = Client(port, timeout)
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
        assert await client.fault() == ("RESET", False)


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


async def test_burst_from_cold_reaches_a_server_that_allows_few_at_once(tls: Tls) -> None:
    """It refuses what comes before its settings do."""
    answered = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 3})
        in_flight = 0
        answers = []

        async def answer(stream: int) -> None:
            nonlocal in_flight, answered
            await asyncio.sleep(0.02)
            in_flight -= 1
            answered += 1
            connection.answer(stream)

        while True:
            stream = await connection.request()
            if in_flight == 3:
                connection.reset(stream, ErrorCodes.REFUSED_STREAM)
            else:
                in_flight += 1
                answers.append(asyncio.create_task(answer(stream)))

    async with served_by(handle, tls, timeout=120.0) as client:
        responses = await asyncio.gather(*(client.post() for _ in range(2 * STREAMS)))
    assert {each.status for each in responses} == {200}
    assert answered == 2 * STREAMS


async def test_request_goes_on_however_many_connections_leave_without_it(tls: Tls) -> None:
    """Those that were opened together leave together."""
    connections = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        connection = Http2(reader, writer)
        stream = await connection.request()
        if connections <= 10:
            connection.go_away(last_stream=0)
            await reader.read()
        else:
            connection.answer(stream)
            await connection.request()

    async with served_by(handle, tls) as client:
        assert (await client.post()).body == BODY


async def test_request_that_has_half_an_answer_is_not_sent_again_when_the_server_leaves(tls: Tls) -> None:
    requests = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal requests
        connection = Http2(reader, writer)
        stream = await connection.request()
        requests += 1
        connection.answer(stream, whole=False)
        connection.go_away(last_stream=0)

    async with served_by(handle, tls) as client:
        assert (await client.post()).status == 200
    assert requests == 1


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
    assert len(most) <= 5


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
    assert connections <= 5


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
    assert connections <= 5
    await client.transport.close()


async def test_requests_that_hang_do_not_delay_others(tls: Tls) -> None:
    hanging = 0
    all_hang = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal hanging
        connection = Http2(reader, writer)
        while True:
            stream = await connection.request()
            if hanging < 5:
                hanging += 1
                if hanging == 5:
                    all_hang.set()
            else:
                connection.answer(stream)

    async with served_by(handle, tls) as client:
        hang = [asyncio.create_task(client.post()) for _ in range(5)]
        await all_hang.wait()
        assert (await client.post()).status == 200
        assert not any(task.done() for task in hang)
        for task in hang:
            task.cancel()
        await asyncio.wait(hang)


async def test_dead_connection_is_found_and_replaced(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_connection, "PING_AFTER", 0.1)
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
        monkeypatch.setattr(http2_connection, "PING_AFTER", PATIENCE)
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


@pytest.mark.parametrize(("name", "value"), [("LAST_STREAM", 4), ("STREAMS", 1)])
async def test_a_connection_is_used_as_long_as_it_has_numbers(
    name: str, value: int, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_connection, name, value)
    connections = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        connection = Http2(reader, writer)
        while True:
            connection.answer(await connection.request())

    async with served_by(handle, tls) as client:
        for _ in range(6):
            assert (await client.post()).status == 200
    assert connections == (3 if name == "LAST_STREAM" else 1)


async def test_idle_connection_is_closed(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_connection, "KEEPALIVE", 0.0)
    ended = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer)
        connection.answer(await connection.request())
        await reader.read()
        ended.set()

    async with served_by(handle, tls) as client:
        await client.post()
        await ended.wait()


async def test_ping_of_the_server_is_answered(tls: Tls) -> None:
    connections = []

    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer)
        connections.append(connection)
        stream = await connection.request()
        connection.ping()
        connection.answer(stream)
        connection.answer(await connection.request())

    async with served_by(handle, tls) as client:
        await client.post()
        await client.post()
    assert connections[0].pongs == 1


async def test_cancelled_request_is_reset(tls: Tls) -> None:
    arrived = asyncio.Event()
    given_up = []

    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer)
        await connection.request()
        arrived.set()
        connection.answer(await connection.request())
        given_up.extend(connection.given_up)
        await reader.read()

    async with served_by(handle, tls) as client:
        task = asyncio.create_task(client.post())
        await arrived.wait()
        task.cancel()
        await asyncio.wait([task])
        assert (await client.post()).status == 200
    assert given_up == [1]


async def test_request_that_is_late_leaves_its_connection_to_others(tls: Tls) -> None:
    connections = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        connection = Http2(reader, writer)
        connection.answer(await connection.request())
        await connection.request()
        connection.answer(await connection.request())
        await reader.read()

    async with served_by(handle, tls) as client:
        await client.post()
        client.transport._timeout = (
            0.1  # of the one that is late; the others have all the time that they need
        )
        assert await client.fault() == ("TIMEOUT", True)
        client.transport._timeout = PATIENCE
        assert (await client.post()).status == 200
    assert connections == 1


async def test_push_of_high_priority_gets_the_next_place(tls: Tls) -> None:
    bodies: list[bytes] = []
    first = asyncio.Event()
    go_on = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 1})
        while True:
            stream = await connection.request()
            bodies.append(connection.bodies[stream])
            if len(bodies) == 2:
                first.set()
                await go_on.wait()
            connection.answer(stream)

    async with served_by(handle, tls) as client:
        await client.post(b"open")
        sending = [asyncio.create_task(client.post()) for _ in range(1)]
        await first.wait()
        async with asyncio.timeout(PATIENCE):
            pool = client.transport._pool
            sending += [asyncio.create_task(client.post()) for _ in range(3)]
            sending.append(asyncio.create_task(client.post(b"high", is_high=True)))
            while len(pool._waiting) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0)
            go_on.set()
            await asyncio.gather(*sending)
    assert bodies.index(b"high") <= 3


async def test_push_of_high_priority_does_not_wait_for_a_full_connection(tls: Tls) -> None:
    all_hang = asyncio.Event()
    hanging = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal hanging
        connection = Http2(reader, writer)
        while True:
            stream = await connection.request()
            if connection.bodies[stream] == b"high":
                connection.answer(stream)
            else:
                hanging += 1
                if hanging == STREAMS:
                    all_hang.set()

    async with served_by(handle, tls, timeout=120.0) as client:
        hang = [asyncio.create_task(client.post()) for _ in range(STREAMS)]
        await all_hang.wait()
        assert (await client.post(b"high", is_high=True)).status == 200
        assert not any(task.done() for task in hang)
        for task in hang:
            task.cancel()
        await asyncio.wait(hang)


async def test_close_ends_the_requests_in_flight_and_those_that_wait(tls: Tls) -> None:
    hanging = 0
    all_hang = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal hanging
        connection = Http2(reader, writer)
        while True:
            await connection.request()
            hanging += 1
            if hanging == 3 * STREAMS:
                all_hang.set()

    async with tcp_server(handle, tls.server) as port:
        client = Client(port, 1000.0)
        sending = [asyncio.create_task(client.post()) for _ in range(3 * STREAMS)]
        await all_hang.wait()
        sending += [asyncio.create_task(client.post()) for _ in range(5)]
        await asyncio.sleep(0)
        await client.transport.close()
        async with asyncio.timeout(PATIENCE):
            faults = await asyncio.gather(*sending, return_exceptions=True)
            with pytest.raises(SendFault, match="CONNECT"):
                await client.transport._pool.acquire(1e9)
    assert {type(each) for each in faults} == {SendFault}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    "first",
    [None, frame(4, 0, 0, b"\0\3\0\0\0\0"), frame(7, 0, 0, bytes(8))],
    ids=["it hangs up", "no requests allowed", "it leaves"],
)
def test_a_server_that_takes_no_requests_gets_few_connections(
    first: bytes | None, version: ssl.TLSVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TLS 1.2 what the server says first may come together with the end of the handshake."""
    connections = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        if first is not None:
            writer.write(first)
            await reader.read()

    async def main() -> None:
        tls = make_tls(tmp_path, protocol="h2")
        tls.server.maximum_version = version
        monkeypatch.setenv("SSL_CERT_FILE", str(tls.ca_file))
        async with served_by(handle, tls, timeout=2.0) as client:
            await client.fault()

    asyncio.run(main())
    assert connections <= direct._TRIES


@pytest.mark.parametrize("protocol", ["http/1.1", None])
async def test_server_without_http2_is_spoken_to_in_http1(
    protocol: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one in the middle that has taken the connection apart."""
    tls = make_tls(tmp_path, protocol)
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.ca_file))
    bodies: Counter[bytes] = Counter()

    async def handle(reader: Reader, writer: Writer) -> None:
        while True:
            _, body = await read_request(reader)
            bodies[body] += 1
            writer.write(answer())

    sent = [b'{"message":%d}' % number for number in range(2 * STREAMS)]
    async with served_by(handle, tls) as client:
        answers = await asyncio.gather(*(client.post(body) for body in sent))
    assert {each.body for each in answers} == {BODY}
    assert bodies == Counter(sent)


# --- what the server allows ----------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {SettingCodes.INITIAL_WINDOW_SIZE: 10}])
@pytest.mark.parametrize("size", [0, 10, 11, 70_000, 300_000])
async def test_a_body_of_any_size_arrives(size: int, settings: dict[int, int], tls: Tls) -> None:
    bodies = []

    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer, settings=settings)
        while True:
            stream = await connection.request()
            bodies.append(connection.bodies[stream])
            connection.answer(stream)

    if settings:
        size = min(size, 200)  # each ten bytes take a round
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with served_by(handle, tls) as client:
        await asyncio.gather(*(client.post(body) for _ in range(3)))
        await client.post(body)
    assert bodies == [body] * 4


async def test_no_more_requests_at_once_than_the_server_allows(tls: Tls) -> None:
    """The server's side of h2 breaks off when there are more."""
    answered = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal answered
        connection = Http2(reader, writer, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 3})
        while True:
            stream = await connection.request()
            await asyncio.sleep(0.005)
            connection.answer(stream)
            answered += 1

    async with served_by(handle, tls) as client:
        await client.post()
        responses = await asyncio.gather(*(client.post() for _ in range(40)))
    assert {each.status for each in responses} == {200}
    assert answered == 41


@pytest.mark.parametrize("table", [4096, 0, 100, 65536])
@pytest.mark.parametrize("token", [b"short", b"t" * 2000, b"t" * 5000, b"t" * 20_000], ids=len)
async def test_the_server_reads_the_fields_of_each_request(token: bytes, table: int, tls: Tls) -> None:
    seen: list[dict[str, str]] = []

    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer, settings={SettingCodes.HEADER_TABLE_SIZE: table})
        while True:
            stream = await connection.request()
            seen.append(connection.fields[stream])
            connection.answer(stream)

    tokens = [f"Bearer {number}{token.decode()}" for number in (1, 1, 2, 2, 1)]
    headers = {each: {"Authorization": each, "X-Goog-User-Project": "p"} for each in tokens}
    async with served_by(handle, tls) as client:
        for each in tokens:
            assert (await client.post(headers=headers[each])).status == 200
    assert [each["authorization"] for each in seen] == tokens
    for fields in seen:
        del fields["authorization"]
        assert fields.pop(":authority").startswith("localhost:")
        assert fields == {
            ":method": "POST",
            ":scheme": "https",
            ":path": "/v1/projects/p/messages:send",
            "user-agent": "push-listener",
            "accept-encoding": "identity",
            "x-goog-user-project": "p",
        }


async def test_the_server_reads_the_fields_while_it_changes_its_table(tls: Tls) -> None:
    """Two access tokens in turn; some requests are refused, also those that fill the table."""
    seen: list[str] = []

    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer)
        for number in itertools.count():
            stream = await connection.request()
            if number % 5 == 3:
                connection.change({SettingCodes.HEADER_TABLE_SIZE: (0, 4096, 100, 65536)[number // 5 % 4]})
            if number % 3 == 0:
                connection.reset(stream, ErrorCodes.REFUSED_STREAM)
            else:
                seen.append(connection.fields[stream]["authorization"])
                connection.answer(stream)

    headers = [{"Authorization": f"Bearer {letter * 1000}"} for letter in "ab"]
    sent = [headers[number // 2 % 2] for number in range(80)]
    async with served_by(handle, tls) as client:
        for each in sent:
            assert (await client.post(headers=each)).status == 200
    assert seen == [each["Authorization"] for each in sent]


@pytest.mark.parametrize("window", [0, 1, 2**31 - 1])
async def test_windows_that_change_are_kept(window: int, tls: Tls) -> None:
    """The server's side of h2 breaks off when a window is exceeded."""
    bodies = []

    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer, settings={SettingCodes.INITIAL_WINDOW_SIZE: 50})
        connection.answer(await connection.request())
        writer.write(frame(8, 0, 1, bytes(4)) + frame(8, 0, 99, b"\xff" * 4))  # windows that nobody waits for
        for size in (window, 60, window, 1000):
            connection.change({SettingCodes.INITIAL_WINDOW_SIZE: size})
        while True:
            stream = await connection.request()
            bodies.append(connection.bodies[stream])
            connection.answer(stream)

    async with served_by(handle, tls) as client:
        await client.post(b"")
        for body in (b"x" * 300, b"", b"y" * 70):
            await client.post(body)
        await asyncio.gather(*(client.post(b"z" * 500) for _ in range(20)))
    assert bodies == [b"x" * 300, b"", b"y" * 70, *[b"z" * 500] * 20]


# --- answers, frame by frame ---------------------------------------------------------------------------

OK = b"\x88"
BUSY = hpack.Encoder().encode([(":status", "429"), ("retry-after", "7")], huffman=True)
Frames = list[tuple[int, int, bytes]]
"""Type, flags and payload of each."""

ANSWERS: dict[str, tuple[Frames, int, bytes]] = {
    "no body": ([(1, 0x5, OK)], 200, b""),
    "a body in pieces": ([(1, 0x4, OK), (0, 0, b"{"), (0, 0, b""), (0, 0x1, b"}")], 200, b"{}"),
    "padding": ([(1, 0xC, b"\x02" + OK + b"pp"), (0, 0x9, b"\x01{}p")], 200, b"{}"),
    "a priority": ([(1, 0x24, b"\0\0\0\0\x0f" + OK), (0, 0x1, b"{}")], 200, b"{}"),
    "continuations": ([(1, 0x1, OK[:0]), (9, 0, OK), (9, 0x4, b"")], 200, b""),
    "a 1xx before it": ([(1, 0x4, b"\x08\x03103"), (1, 0x4, OK), (0, 0x1, b"{}")], 200, b"{}"),
    "trailers": ([(1, 0x4, OK), (0, 0, b"{}"), (1, 0x5, b"\x00\x01a\x01b")], 200, b"{}"),
    "unknown frames": ([(0xBE, 0xFF, b"?"), (1, 0x4, OK), (2, 0, bytes(5)), (0, 0x1, b"{}")], 200, b"{}"),
    "fields in Huffman code": ([(1, 0x4, BUSY), (0, 0x1, b"{}")], 429, b"{}"),
    "gzip": (
        [(1, 0x4, b"\x8d\x5a\x04gzip".replace(b"\x5a", b"\x0f\x0b")), (0, 0x1, gzip.compress(BODY))],
        404,
        BODY,
    ),
    "no end of a body of an acceptance": ([(1, 0x4, OK), (0, 0, b"{"), (3, 0, b"\0\0\0\x08")], 200, b""),
}

NONSENSE: dict[str, Frames] = {
    "a body without fields": [(0, 0x1, b"{}")],
    "fields that cannot be decoded": [(1, 0x5, b"\xff\xff\xff\xff\xff\xff\xff\xff")],
    "fields without a status": [(1, 0x5, b"\x00\x01a\x01b")],
    "a status that is no number": [(1, 0x5, b"\x08\x03abc")],
    "fields from a table": [(1, 0x5, b"\xbe")],
    "a 1xx that ends it": [(1, 0x5, b"\x08\x03103")],
    "nothing but padding": [(1, 0xD, b"\x05" + OK)],
    "a continuation of nothing": [(9, 0x4, OK)],
    "a frame between fields and their continuation": [(1, 0x1, OK), (6, 0, bytes(8))],
    "fields without end": [(1, 0x1, OK), *[(9, 0, bytes(16_000))] * 5],
    "a promise": [(5, 0x4, b"\0\0\0\x02" + OK)],
    "a reset of another length": [(3, 0, b"\0")],
    "settings of another length": [(4, 0, b"\0")],
    "a window of another length": [(8, 0, b"\0")],
    "a leave of another length": [(7, 0, b"\0")],
    "a frame that is too large": [(1, 0x5, bytes(20_000))],
}


def says(frames: Frames) -> Callable[[Reader, Writer], Awaitable[None]]:
    """A server that answers the first request on a connection with frames, at once or byte by byte."""

    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer)
        stream = await connection.request()
        for kind, flags, payload in frames:
            on = 0 if kind in (4, 6, 7) else stream
            writer.write(frame(kind, flags, on, payload))
        with suppress(asyncio.IncompleteReadError):
            await connection.request()

    return handle


@pytest.mark.parametrize("name", ANSWERS)
async def test_answer_is_read(name: str, tls: Tls) -> None:
    frames, status, body = ANSWERS[name]
    async with served_by(says(frames), tls) as client:
        response = await client.post()
    assert (response.status, response.body) == (status, body)
    if status == 429:
        assert dict(response.headers) == {"retry-after": "7"}
        assert response.headers["Retry-After"] == "7"
        assert len(response.headers) == 1


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_is_a_fault(name: str, tls: Tls) -> None:
    async with served_by(says(NONSENSE[name]), tls) as client:
        assert await client.fault() == ("PROTOCOL", True)


async def test_what_is_not_http2_is_a_fault(tls: Tls) -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 400 Bad\r\n\r\n")
        await reader.read()

    async with served_by(handle, tls) as client:
        code, _ = await client.fault()
    assert code in ("PROTOCOL", "CONNECT")


async def test_answers_of_any_number_are_read(tls: Tls) -> None:
    """The windows for answers are opened again as they fill."""
    body = b"<" * 60_000

    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer)
        while True:
            connection.answer(await connection.request(), 404, body)

    async with served_by(handle, tls) as client:
        for _ in range(40):
            assert (await client.post()).body == body


async def test_huge_answer_is_cut(tls: Tls) -> None:
    given_up = []

    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer)
        for _ in range(2):
            connection.answer(await connection.request(), 404, b"<" * ANSWER_LIMIT, whole=False)
        stream = await connection.request()
        given_up.extend(connection.given_up)
        connection.answer(stream)
        await reader.read()

    async with served_by(handle, tls) as client:
        for _ in range(2):
            assert (await client.post()).body == b"<" * ANSWER_LIMIT
        await client.post()
    assert given_up == [1, 3]
