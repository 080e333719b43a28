"""HTTP/1.1: what its connections must not do. The contract of all transports: ``test_transport``."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohappyeyeballs
import pytest

from listener.fcm.fault import SendFault
from listener.fcm.transports.base import Outgoing
from listener.fcm.transports.direct import DirectTransport
from listener.fcm.transports.http1_connection import Http1Connection
from tests.support.servers import answer, forget_proxies, read_request, tcp_server

HEADERS = {"Authorization": "Bearer abc"}

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)


@asynccontextmanager
async def opened(port: int) -> AsyncIterator[DirectTransport]:
    transport = DirectTransport(f"http://127.0.0.1:{port}/send", connect_timeout=30.0, timeout=60.0)
    try:
        yield transport
    finally:
        await transport.close()


def post(transport: DirectTransport) -> asyncio.Task[Any]:
    return asyncio.create_task(transport.post(HEADERS, Outgoing(lambda: b"{}")))


async def test_a_server_that_closes_at_once_gets_few_connections() -> None:
    accepted = 0

    async def closes(reader: Reader, writer: Writer) -> None:
        nonlocal accepted
        accepted += 1
        writer.write(b"go away\r\n")

    async def busy() -> None:
        while True:
            time.sleep(0.01)  # noqa: ASYNC251
            await asyncio.sleep(0)

    async with tcp_server(closes) as port, opened(port) as transport, asyncio.timeout(60):
        other = asyncio.create_task(busy())  # Connections are closed before their turn comes.
        faults = await asyncio.gather(*(post(transport) for _ in range(5)), return_exceptions=True)
        other.cancel()
        assert all(isinstance(fault, SendFault) for fault in faults), faults
        assert accepted <= 5 * 3 + 5


async def test_closing_makes_no_new_connections() -> None:
    accepted = 0

    async def holds(reader: Reader, writer: Writer) -> None:
        nonlocal accepted
        accepted += 1
        await reader.read()

    async with tcp_server(holds) as port, opened(port) as transport:
        in_flight = [post(transport) for _ in range(60)]
        await asyncio.sleep(0)
        await transport.close()
        before = accepted
        faults = await asyncio.gather(*in_flight, return_exceptions=True)
        assert all(isinstance(fault, SendFault) for fault in faults), faults
    assert accepted <= before + 32
    pool = transport._pool
    assert (len(pool._all), len(pool._opening), len(pool._free)) == (0, 0, 0)


async def test_half_an_answer_is_not_complete_when_the_transport_is_closed() -> None:
    said = asyncio.Event()

    async def half(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b'HTTP/1.1 404 Not Found\r\n\r\n{"error": {"code": 404')
        await writer.drain()
        said.set()
        await reader.read()

    async with tcp_server(half) as port, opened(port) as transport:
        in_flight = post(transport)
        await said.wait()
        while not any(cast(Http1Connection, each)._status for each in transport._pool._all):  # noqa: ASYNC110
            await asyncio.sleep(0)
        await transport.close()
        with pytest.raises(SendFault) as raised:
            await in_flight
    assert (raised.value.code, raised.value.ambiguous) == ("RESET", True)


async def test_at_the_limit_of_open_files_requests_share_the_connections_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def slow(reader: Reader, writer: Writer) -> None:
        while await read_request(reader):
            await asyncio.sleep(0.05)
            writer.write(answer())

    async with tcp_server(slow) as port, opened(port) as transport:
        await post(transport)

        async def no_more(*_: object, **__: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(aiohappyeyeballs, "start_connection", no_more)
        answers = await asyncio.gather(*(post(transport) for _ in range(10)))
    assert {each.status for each in answers} == {200}


async def test_many_connections_need_one_request_to_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    getaddrinfo, asked = loop.getaddrinfo, 0

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        return await getaddrinfo(*args, **options)

    monkeypatch.setattr(loop, "getaddrinfo", counted)

    async def answers(reader: Reader, writer: Writer) -> None:
        while await read_request(reader):
            await asyncio.sleep(0.01)
            writer.write(answer())

    async with tcp_server(answers) as port, opened(port) as transport:
        await asyncio.gather(*(post(transport) for _ in range(40)))
    assert asked == 1


async def test_an_upgrade_without_a_request_for_it_is_no_answer() -> None:
    async def upgrades(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
        await reader.read()

    async with tcp_server(upgrades) as port, opened(port) as transport:
        with pytest.raises(SendFault) as raised:
            await post(transport)
    assert (raised.value.code, raised.value.ambiguous) == ("PROTOCOL", True)


async def test_a_connection_that_is_never_said_to_be_lost_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """uvloop can finish a handshake in the same turn in which the time for it ends."""

    class Forgetful(asyncio.Transport):
        aborted = False

        def abort(self) -> None:
            self.aborted = True

        def is_closing(self) -> bool:
            return self.aborted

        def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
            pass

    made = Forgetful()

    async def create_connection(factory: Any, **_: Any) -> Any:
        factory().connection_made(made)
        raise TimeoutError

    async def idle(reader: Reader, writer: Writer) -> None:
        await reader.read()

    async with tcp_server(idle) as port, asyncio.timeout(60):
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection)
        async with opened(port) as transport:
            with pytest.raises(SendFault, match="CONNECT"):
                await post(transport)
            assert made.aborted
            assert not transport._pool._all
