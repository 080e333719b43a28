"""Connections, requests and faults leave nothing behind that only the collector would find: it runs rarely."""

from __future__ import annotations

import asyncio
import gc
import ssl
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, get_args

import pytest
import uvloop
from h2.errors import ErrorCodes

from listener.fcm.fault import AuthFault, SendFault
from listener.fcm.sender import Sender
from listener.fcm.transports import pool
from listener.fcm.transports.base import Outgoing, Transport
from listener.fcm.transports.choose import TransportName, make_transport
from listener.fcm.transports.http1_connection import Http1Connection
from tests.support.http2 import Http2
from tests.support.servers import (
    Handler,
    Tls,
    answer,
    closed_port,
    forget_proxies,
    make_tls,
    read_request,
    reset,
    tcp_server,
)

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter

HEADERS = {"Authorization": "Bearer abc", "Content-Type": "application/json"}
MANY = 6


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def _unfrozen_at_the_end() -> Iterator[None]:
    """What one test has frozen the collector need not look through in the next: that would take most of its time."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls_http2(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("http2"), protocol="h2")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("other"))


async def answers(reader: Reader, writer: Writer) -> None:
    while True:
        await read_request(reader)
        writer.write(answer())


async def answers_and_closes(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    writer.write(answer(200, b"{}", "Connection: close"))


async def closes(reader: Reader, writer: Writer) -> None:
    await read_request(reader)


async def resets(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    reset(writer)


async def is_silent(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    await asyncio.Event().wait()


async def talks_nonsense(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    writer.write(b"nonsense\r\n\r\n")


async def breaks_off(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 500 X\r\nContent-Length: 100\r\n\r\nhalf")


async def is_deaf(reader: Reader, writer: Writer) -> None:
    await asyncio.Event().wait()


async def hangs_up(reader: Reader, writer: Writer) -> None:
    pass


SERVERS: list[Handler] = [
    answers,
    answers_and_closes,
    closes,
    resets,
    is_silent,
    talks_nonsense,
    breaks_off,
]

Use = Callable[[Transport], Awaitable[object]]


async def post(transport: Transport) -> None:
    with suppress(SendFault):
        await transport.post(HEADERS, Outgoing(lambda: b"{}"))


async def many(transport: Transport) -> None:
    await asyncio.gather(*(post(transport) for _ in range(MANY)))


async def cancelled(transport: Transport) -> None:
    """Requests of which some have been written, and some have no connection yet."""
    for patience in (0, 1, 20):
        tasks = [asyncio.create_task(post(transport)) for _ in range(MANY)]
        for _ in range(patience):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def is_clients(thing: object) -> bool:
    """Whether an object belongs to the client, and not to the server, which is asyncio's."""
    if isinstance(thing, ssl.SSLObject):
        return not thing.server_side
    return type(thing).__module__.partition(".")[0] in {"listener", "aiohttp", "httptools"}


@contextmanager
def without_collector() -> Iterator[Counter[str]]:
    """Yields a counter; filled at the end with the types of what only the collector would have found."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found.update(type(each).__qualname__ for each in gc.garbage if is_clients(each))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def garbage_of(
    name: TransportName, use: Use, serve: Handler | None, tls: Tls | None, host: str
) -> Counter[str]:
    """What is left of the connections of a transport after it has been used and closed."""

    @asynccontextmanager
    async def server() -> Any:
        if serve is None:
            yield closed_port()
        else:
            async with tcp_server(serve, None if tls is None else tls.server) as port:
                yield port

    async def use_it(port: int) -> None:
        scheme = "http" if tls is None else "https"
        transport = make_transport(name, f"{scheme}://{host}:{port}/", connect_timeout=0.2, timeout=0.4)
        await use(transport)
        await transport.close()
        await asyncio.sleep(0.05)  # for what the event loop does after the end of a connection

    async def main() -> Counter[str]:
        async with server() as port:
            await use_it(port)  # the first time something is imported, or made once
            with without_collector() as found:
                await use_it(port)
            return found

    return uvloop.run(main())


@pytest.mark.parametrize(
    ("name", "encrypted", "use"),
    [
        *((name, True, many) for name in get_args(TransportName)),
        # To these servers http2 makes connections as http1 does.
        *((name, True, cancelled) for name in ("http1", "aiohttp")),
        *((name, False, many) for name in ("http1", "aiohttp")),
    ],
)
def test_a_connection_leaves_nothing(
    name: TransportName, encrypted: bool, use: Use, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.ca_file))
    left = {
        serve.__name__: garbage_of(name, use, serve, tls if encrypted else None, "localhost")
        for serve in SERVERS
    }
    assert not {server: garbage for server, garbage in left.items() if garbage}


def too_late(turns: int) -> Use:
    """Requests whose connections come when the time for them is over: the event loop stands still after some turns."""

    async def use(transport: Transport) -> None:
        tasks = [asyncio.create_task(post(transport)) for _ in range(MANY)]
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(0.25)  # noqa: ASYNC251  # longer than connect_timeout
        await asyncio.gather(*tasks)

    return use


def test_connections_that_come_too_late_leave_nothing() -> None:
    """uvloop does not say of each of them that it is lost."""
    left = {turns: garbage_of("http1", too_late(turns), answers, None, "localhost") for turns in range(5, 10)}
    assert not {turns: garbage for turns, garbage in left.items() if garbage}


def by_http2(act: Callable[[Http2, int, Writer], object]) -> Handler:
    """A server that does something with each request."""

    async def handle(reader: Reader, writer: Writer) -> None:
        connection = Http2(reader, writer)
        while True:
            act(connection, await connection.request(), writer)

    return handle


HTTP2_SERVERS: dict[str, Handler] = {
    "answers": by_http2(lambda connection, stream, _: connection.answer(stream)),
    "refuses": by_http2(lambda connection, stream, _: connection.reset(stream, ErrorCodes.REFUSED_STREAM)),
    "resets": by_http2(lambda connection, stream, _: connection.reset(stream, ErrorCodes.INTERNAL_ERROR)),
    "cuts": by_http2(lambda connection, stream, writer: reset(writer)),
    "leaves": by_http2(lambda connection, stream, _: connection.go_away(stream - 1)),
    "is silent": by_http2(lambda connection, stream, _: None),
    "breaks off": by_http2(lambda connection, stream, _: connection.answer(stream, 500, whole=False)),
    "talks nonsense": by_http2(lambda connection, stream, writer: writer.write(b"nonsense\r\n\r\n")),
}


@pytest.mark.parametrize("use", [many, cancelled])
@pytest.mark.parametrize("does", HTTP2_SERVERS)
def test_a_connection_of_http2_leaves_nothing(
    does: str, use: Use, tls_http2: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_http2.ca_file))
    assert not garbage_of("http2", use, HTTP2_SERVERS[does], tls_http2, "localhost")


@pytest.mark.parametrize("name", get_args(TransportName))
def test_an_untrusted_server_leaves_nothing(
    name: TransportName, tls: Tls, other: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(other.ca_file))
    assert not garbage_of(name, many, answers, tls, "localhost")


@pytest.mark.parametrize("serve", [is_deaf, hangs_up])
@pytest.mark.parametrize("name", get_args(TransportName))
def test_a_handshake_that_fails_leaves_nothing(name: TransportName, serve: Handler) -> None:
    async def hear(reader: Reader, writer: Writer) -> None:
        await serve(reader, writer)

    async def main() -> Counter[str]:
        async with tcp_server(hear) as port:  # it knows no TLS
            for is_first in (True, False):
                with without_collector() as found:
                    transport = make_transport(
                        name, f"https://localhost:{port}/", connect_timeout=0.2, timeout=0.4
                    )
                    await many(transport)
                    await transport.close()
                    await asyncio.sleep(0.05)
                if not is_first:
                    return found
        raise AssertionError

    assert not uvloop.run(main())


@pytest.mark.parametrize("host", ["localhost", "no-such-host.invalid"])
@pytest.mark.parametrize("name", get_args(TransportName))
def test_a_refused_connection_leaves_nothing(name: TransportName, host: str) -> None:
    assert not garbage_of(name, many, None, None, host)


class NoTokens:
    """Access tokens that cannot be had."""

    quota_project_id = None

    async def get(self) -> str:
        raise AuthFault("OAUTH_TIMEOUT", "no answer", permanent=False)


@pytest.mark.parametrize("tokens", [NoTokens()])
def test_a_sender_without_a_token_leaves_nothing(tokens: Any) -> None:
    async def main() -> Counter[str]:
        transport = make_transport("http1", "http://localhost:1/", connect_timeout=0.3, timeout=0.6)
        sender = Sender(transport, tokens)
        with without_collector() as found:
            await asyncio.gather(*(sender.send(Outgoing(lambda: b"{}")) for _ in range(MANY)))
        await transport.close()
        return found

    assert not uvloop.run(main())


def test_a_connection_is_gone_when_it_is_lost(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only unreachable: nothing may hold on to it, while the transport lives."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.ca_file))
    made: list[weakref.ref[Http1Connection]] = []

    class Watched(Http1Connection):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr(pool, "Http1Connection", Watched)

    def left() -> int:
        return sum(each() is not None for each in made)

    async def main() -> None:
        for serve in (answers_and_closes, closes, is_silent):
            async with tcp_server(serve, tls.server) as port:
                transport = make_transport(
                    "http1", f"https://localhost:{port}/", connect_timeout=2.0, timeout=2.5
                )
                with without_collector():
                    over = time.monotonic() + 60.0
                    # A connection that comes too late for its request, on a slow machine, waits for the next one.
                    while not made or left():
                        assert time.monotonic() < over, f"{left()} of {len(made)} connections are left"
                        await many(transport)
                        with suppress(TimeoutError):
                            async with asyncio.timeout(5.0):
                                while left():  # noqa: ASYNC110  # it has no event
                                    await asyncio.sleep(0.01)
                    made.clear()
                await transport.close()

    uvloop.run(main())
