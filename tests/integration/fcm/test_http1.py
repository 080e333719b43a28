"""The transport of our own: what its pool of connections must not do. The contract of all: ``test_transport``."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohappyeyeballs
import pytest

from listener.fcm.fault import SendFault
from listener.fcm.transports.http1 import AsyncioTransport
from tests.support.servers import answer, forget_proxies, read_request, tcp_server

HEADERS = {"Authorization": "Bearer abc"}

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)


@pytest.fixture
async def transport() -> AsyncIterator[AsyncioTransport]:
    made = AsyncioTransport(connect_timeout=5.0, timeout=10.0)
    yield made
    await made.close()


def post(by: AsyncioTransport, port: int) -> asyncio.Task[Any]:
    return asyncio.create_task(by.post(f"http://127.0.0.1:{port}/send", HEADERS, b"{}"))


async def test_a_server_that_closes_at_once_is_not_stormed(transport: AsyncioTransport) -> None:
    accepted = 0

    async def closes(reader: Reader, writer: Writer) -> None:
        nonlocal accepted
        accepted += 1
        writer.write(b"go away\r\n")

    async def busy() -> None:
        while True:
            time.sleep(0.01)  # noqa: ASYNC251
            await asyncio.sleep(0)

    async with tcp_server(closes) as port, asyncio.timeout(20):
        other = asyncio.create_task(busy())  # so that connections are closed before their turn comes
        faults = await asyncio.gather(*(post(transport, port) for _ in range(5)), return_exceptions=True)
        other.cancel()
        assert all(isinstance(fault, SendFault) for fault in faults), faults
        assert accepted <= 5 * 3 + 5


async def test_closing_makes_no_new_connections() -> None:
    accepted = 0
    transport = AsyncioTransport(connect_timeout=5.0, timeout=10.0)

    async def holds(reader: Reader, writer: Writer) -> None:
        nonlocal accepted
        accepted += 1
        await reader.read()

    async with tcp_server(holds) as port:
        under_way = [post(transport, port) for _ in range(60)]
        await asyncio.sleep(0)
        await transport.close()
        before = accepted
        faults = await asyncio.gather(*under_way, return_exceptions=True)
        assert all(isinstance(fault, SendFault) for fault in faults), faults
        # Whoever was connected is gone as well: the server could not end otherwise.
    assert accepted <= before + 32
    pools = [route.pool for route in transport._routes.values() if route is not None]
    assert [(len(pool._all), len(pool._opening), len(pool._idle)) for pool in pools] == [(0, 0, 0)]


async def test_half_an_answer_is_not_taken_for_a_whole_one_when_it_is_closed() -> None:
    transport = AsyncioTransport(connect_timeout=5.0, timeout=10.0)
    said = asyncio.Event()

    async def half(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b'HTTP/1.1 404 Not Found\r\n\r\n{"error": {"code": 404')
        await writer.drain()
        said.set()
        await reader.read()

    async with tcp_server(half) as port:
        under_way = post(transport, port)
        await said.wait()
        (pool,) = [route.pool for route in transport._routes.values() if route is not None]
        while not any(connection._status for connection in pool._all):  # noqa: ASYNC110
            await asyncio.sleep(0)
        await transport.close()
        with pytest.raises(SendFault) as raised:
            await under_way
    assert (raised.value.code, raised.value.ambiguous) == ("RESET", True)


async def test_without_a_file_to_spare_the_connections_there_are_must_do(
    transport: AsyncioTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(reader: Reader, writer: Writer) -> None:
        while await read_request(reader):
            await asyncio.sleep(0.05)
            writer.write(answer())

    async with tcp_server(slow) as port:
        await post(transport, port)

        async def no_more(*_: object, **__: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(aiohappyeyeballs, "start_connection", no_more)
        answers = await asyncio.gather(*(post(transport, port) for _ in range(10)))
    assert {each.status for each in answers} == {200}


async def test_the_resolver_is_asked_once_for_many(
    transport: AsyncioTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
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

    async with tcp_server(answers) as port:
        await asyncio.gather(*(post(transport, port) for _ in range(40)))
    assert asked == 1


async def test_an_upgrade_that_nobody_asked_for_is_no_answer(transport: AsyncioTransport) -> None:
    async def upgrades(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
        await reader.read()

    async with tcp_server(upgrades) as port:
        with pytest.raises(SendFault) as raised:
            await post(transport, port)
    assert (raised.value.code, raised.value.ambiguous) == ("PROTOCOL", True)
