"""All transports, each against servers that behave and servers that misbehave. HTTP/2 alone: ``test_http2``."""

from __future__ import annotations

import asyncio
import gzip
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Protocol, get_args

import pytest
import uvloop

from listener import config
from listener.fcm.fault import SendFault, TooLate
from listener.fcm.transports import aiohttp as aiohttp_transport
from listener.fcm.transports import pool
from listener.fcm.transports.base import ANSWER_LIMIT, Outgoing, Response, Transport
from listener.fcm.transports.choose import TransportName, make_transport
from tests.support.servers import (
    BODY,
    Tls,
    answer,
    closed_port,
    forget_proxies,
    make_tls,
    read_request,
    reset,
    tcp_server,
    tunnelling_proxy,
)
from tests.support.service import PATIENCE

NAMES: tuple[TransportName, ...] = get_args(TransportName)
HEADERS = {"Authorization": "Bearer abc", "Content-Type": "application/json"}

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)
    monkeypatch.setenv(
        "SSL_CERT_FILE", os.devnull
    )  # to read the system's authorities takes 30 ms of CPU time


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


class MakeTransport(Protocol):
    def __call__(
        self, url: str, *, connect_timeout: float = 30.0, timeout: float = 60.0
    ) -> AbstractAsyncContextManager[Transport]: ...


@asynccontextmanager
async def opened(
    name: TransportName,
    url: str,
    *,
    connect_timeout: float = 30.0,
    timeout: float = 60.0,  # noqa: ASYNC109
) -> AsyncIterator[Transport]:
    made = make_transport(name, url, connect_timeout=connect_timeout, timeout=timeout)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture(params=NAMES)
def transport(request: pytest.FixtureRequest) -> MakeTransport:
    return partial(opened, request.param)


def url(port: int, scheme: str = "http", host: str = "127.0.0.1") -> str:
    return f"{scheme}://{host}:{port}/v1/projects/p/messages:send"


async def post(by: Transport) -> Response:
    return await by.post(HEADERS, Outgoing(lambda: b'{"message":{}}'))


# --- what is sent depends on the moment ----------------------------------------------------------------


@pytest.fixture
def trusting(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> Tls:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.ca_file))
    return tls


@asynccontextmanager
async def slow_to_connect(tls: Tls, shakes_hands: asyncio.Event) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server whose TLS handshakes wait for an event; yields its port and the bodies that arrive."""
    bodies: list[bytes] = []

    async def serve(reader: Reader, writer: Writer) -> None:
        while True:
            head, body = await read_request(reader)
            if b"chunked" in head:
                size = int(await reader.readline(), 16)
                body = await reader.readexactly(size)
                await reader.readuntil(b"0\r\n\r\n")
            bodies.append(body)
            writer.write(answer())

    async with tcp_server(serve, tls.server) as port:

        async def pipe(reader: Reader, writer: Writer) -> None:
            await shakes_hands.wait()
            there = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

        async with tcp_server(pipe) as outside:
            yield outside, bodies


async def pump(reader: Reader, writer: Writer) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)


async def test_the_body_is_made_when_there_is_a_connection(transport: MakeTransport, trusting: Tls) -> None:
    shakes_hands = asyncio.Event()
    made_after: list[bool] = []

    def make() -> bytes:
        made_after.append(shakes_hands.is_set())
        return b"{}"

    async with (
        slow_to_connect(trusting, shakes_hands) as (port, bodies),
        transport(url(port, "https", "localhost")) as by,
    ):
        sending = asyncio.create_task(by.post(HEADERS, Outgoing(make, expires=True)))
        await asyncio.sleep(0.2)
        assert made_after == []
        shakes_hands.set()
        await sending
        await by.post(HEADERS, Outgoing(make, expires=True))
    assert (made_after, bodies) == ([True, True], [b"{}", b"{}"])


@pytest.mark.parametrize("first", [True, False])
async def test_what_is_too_late_is_not_sent(transport: MakeTransport, trusting: Tls, *, first: bool) -> None:
    shakes_hands = asyncio.Event()
    shakes_hands.set()

    def make() -> bytes:
        raise TooLate

    async with (
        slow_to_connect(trusting, shakes_hands) as (port, bodies),
        transport(url(port, "https", "localhost")) as by,
    ):
        if not first:
            await post(by)
        with pytest.raises(TooLate):
            await by.post(HEADERS, Outgoing(make, expires=True))
        assert len(bodies) == (0 if first else 1)
        for _ in range(3):
            await post(by)
        assert len(bodies) == (3 if first else 4)


@pytest.mark.parametrize("name", NAMES)
async def test_a_push_of_high_priority_does_not_wait_for_the_handshakes_of_all_others(
    name: TransportName, trusting: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pool, aiohttp_transport):
        monkeypatch.setattr(module, "OPENING_LIMIT", 1)
        monkeypatch.setattr(module, "OPENING_FOR_HIGH", 0)
    shakes_hands = asyncio.Event()
    async with (
        slow_to_connect(trusting, shakes_hands) as (port, bodies),
        opened(name, url(port, "https", "localhost")) as by,
    ):
        sending = [asyncio.create_task(post(by)) for _ in range(20)]
        await asyncio.sleep(0)
        sending.append(asyncio.create_task(by.post(HEADERS, Outgoing(lambda: b"high", is_high=True))))
        await asyncio.sleep(0)
        shakes_hands.set()
        assert {each.status for each in await asyncio.gather(*sending)} == {200}
    assert bodies.index(b"high") <= 1  # one was being opened for another request


# --- the setting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
async def test_the_setting_names_the_transport(name: TransportName) -> None:
    settings = config.load(database_url="postgresql://nobody@localhost/none", transport=name)
    module = "aiohttp" if name == "aiohttp" else "direct"
    async with opened(settings.transport, "https://fcm.example/") as chosen:
        assert type(chosen).__module__ == f"listener.fcm.transports.{module}"


@pytest.mark.parametrize("name", NAMES)
async def test_through_a_proxy_aiohttp_takes_the_place_of_the_others(
    name: TransportName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    async with opened(name, "https://fcm.example/") as chosen:
        assert type(chosen).__module__ == "listener.fcm.transports.aiohttp"


# --- faults, on both event loops: their code, and whether the request may have been written -------------

Case = Callable[[MakeTransport, Tls, pytest.MonkeyPatch], Coroutine[Any, Any, Response]]


async def dns(transport: MakeTransport, tls: Tls, env: pytest.MonkeyPatch) -> Response:
    async with transport("http://nobody.invalid/") as by:
        return await post(by)


async def refused(transport: MakeTransport, tls: Tls, env: pytest.MonkeyPatch) -> Response:
    async with transport(url(closed_port())) as by:
        return await post(by)


async def untrusted_certificate(transport: MakeTransport, tls: Tls, env: pytest.MonkeyPatch) -> Response:
    async with tcp_server(silent, tls.server) as port, transport(url(port, "https", "localhost")) as by:
        return await post(by)


async def certificate_of_another_host(
    transport: MakeTransport, tls: Tls, env: pytest.MonkeyPatch
) -> Response:
    env.setenv("SSL_CERT_FILE", str(tls.ca_file))
    async with tcp_server(silent, tls.server) as port, transport(url(port, "https", "127.0.0.1")) as by:
        return await post(by)


async def no_tls_there(transport: MakeTransport, tls: Tls, env: pytest.MonkeyPatch) -> Response:
    async def plain(reader: Reader, writer: Writer) -> None:
        await reader.read(1)
        writer.write(answer(400))
        await reader.read()

    async with tcp_server(plain) as port, transport(url(port, "https")) as by:
        return await post(by)


async def tls_handshake_cut(transport: MakeTransport, tls: Tls, env: pytest.MonkeyPatch) -> Response:
    async def cut(reader: Reader, writer: Writer) -> None:
        await reader.read(1)
        reset(writer)

    async with tcp_server(cut) as port, transport(url(port, "https")) as by:
        return await post(by)


async def tls_handshake_hangs(transport: MakeTransport, tls: Tls, env: pytest.MonkeyPatch) -> Response:
    async with tcp_server(silent) as port, transport(url(port, "https"), connect_timeout=0.1) as by:
        return await post(by)


async def proxy_unreachable(transport: MakeTransport, tls: Tls, env: pytest.MonkeyPatch) -> Response:
    env.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    async with transport(url(443, "https", "fcm.example")) as by:
        return await post(by)


async def proxy_is_socks(transport: MakeTransport, tls: Tls, env: pytest.MonkeyPatch) -> Response:
    env.setenv("ALL_PROXY", f"socks5://127.0.0.1:{closed_port()}")
    async with transport(url(443, "https", "fcm.example")) as by:
        return await post(by)


def through_proxy_that(behaves: Callable[[Reader, Writer], Awaitable[None]], patience: float = 30.0) -> Case:
    async def case(transport: MakeTransport, tls: Tls, env: pytest.MonkeyPatch) -> Response:
        async with tcp_server(behaves) as port:
            env.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{port}")
            async with transport(url(443, "https", "fcm.example"), connect_timeout=patience) as by:
                return await post(by)

    return case


async def tls_fails_behind_proxy(transport: MakeTransport, tls: Tls, env: pytest.MonkeyPatch) -> Response:
    async with tunnelling_proxy() as proxy, tcp_server(silent, tls.server) as port:
        env.setenv("HTTPS_PROXY", proxy.url)
        async with transport(url(port, "https", "localhost")) as by:
            return await post(by)


def to_server_that(
    behaves: Callable[[Reader, Writer], Awaitable[None]], patience: float | None = None
) -> Case:
    async def case(transport: MakeTransport, tls: Tls, env: pytest.MonkeyPatch) -> Response:
        timeouts = {} if patience is None else {"connect_timeout": patience - 0.1, "timeout": patience}
        async with tcp_server(behaves) as port, transport(url(port), **timeouts) as by:
            return await post(by)

    return case


def to_tls_server_that(behaves: Callable[[Reader, Writer], Awaitable[None]]) -> Case:
    async def case(transport: MakeTransport, tls: Tls, env: pytest.MonkeyPatch) -> Response:
        env.setenv("SSL_CERT_FILE", str(tls.ca_file))
        async with (
            tcp_server(behaves, tls.server) as port,
            transport(url(port, "https", "localhost")) as by,
        ):
            return await post(by)

    return case


async def silent(reader: Reader, writer: Writer) -> None:
    await reader.read()


async def keeps_silent(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    await reader.read()


async def hangs_up(reader: Reader, writer: Writer) -> None:
    await read_request(reader)


async def resets(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    reset(writer)


def says(data: bytes, *, then: Callable[[Reader, Writer], Awaitable[None]] | None = None) -> Any:
    async def handle(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(data)
        await writer.drain()
        if then is not None:
            await then(reader, writer)

    return handle


async def second_on_same_connection(transport: MakeTransport, tls: Tls, env: pytest.MonkeyPatch) -> Response:
    async def once(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(answer())
        await read_request(reader)
        reset(writer)

    async with tcp_server(once) as port, transport(url(port)) as by:
        await post(by)
        return await post(by)


HALF_ERROR = answer(404, b'{"error": {"code": 404}}')[:-10]

CERTAIN: dict[str, tuple[Case, str]] = {
    "no such name": (dns, "DNS"),
    "connection refused": (refused, "CONNECT"),
    "untrusted certificate": (untrusted_certificate, "TLS"),
    "certificate of another host": (certificate_of_another_host, "TLS"),
    "no TLS there": (no_tls_there, "TLS"),
    "TLS handshake cut": (tls_handshake_cut, "CONNECT"),
    "TLS handshake hangs": (tls_handshake_hangs, "CONNECT"),
    "proxy unreachable": (proxy_unreachable, "PROXY"),
    "proxy is SOCKS": (proxy_is_socks, "PROXY"),
    "proxy says 407": (through_proxy_that(says(answer(407))), "PROXY"),
    "proxy says 502": (through_proxy_that(says(answer(502))), "PROXY"),
    "proxy hangs up": (through_proxy_that(hangs_up), "PROXY"),
    "proxy resets": (through_proxy_that(resets), "PROXY"),
    "proxy speaks no HTTP": (through_proxy_that(says(b"220 smtp ready\r\n")), "PROXY"),
    "proxy hangs": (through_proxy_that(silent, patience=0.3), "CONNECT"),
    "TLS failure behind proxy": (tls_fails_behind_proxy, "TLS"),
}

AMBIGUOUS: dict[str, tuple[Case, str]] = {
    "no answer": (to_server_that(keeps_silent, 3.2), "TIMEOUT"),
    "half a head, then silence": (to_server_that(says(b"HTTP/1.1 200 OK\r\n", then=silent), 3.2), "TIMEOUT"),
    "half an error body, then silence": (to_server_that(says(HALF_ERROR, then=silent), 3.2), "TIMEOUT"),
    "hang-up before the answer": (to_server_that(hangs_up), "RESET"),
    "reset before the answer": (to_server_that(resets), "RESET"),
    "hang-up before the answer, over TLS": (to_tls_server_that(hangs_up), "RESET"),
    "reset before the answer, over TLS": (to_tls_server_that(resets), "RESET"),
    "reset of a kept connection": (second_on_same_connection, "RESET"),
    "half a head": (to_server_that(says(b"HTTP/1.1 200 OK\r\nContent-")), "RESET"),
    "half an error body": (to_server_that(says(HALF_ERROR)), "RESET"),
    "half a chunked error body": (
        to_server_that(says(b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{")),
        "RESET",
    ),
    "error body that is not the gzip it claims": (
        to_server_that(says(answer(503, b"no gzip", "Content-Encoding: gzip"))),
        "RESET",
    ),
    "not HTTP": (to_server_that(says(b"220 smtp ready\r\n")), "PROTOCOL"),
    "endless header": (
        to_server_that(says(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 600_000, then=silent)),
        "PROTOCOL",
    ),
}


SLOW = ("no answer", "half a head, then silence", "half an error body, then silence", "TLS handshake hangs")
"""These wait for a timeout, and change nothing in the environment."""


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("name", NAMES)
def test_faults(
    name: TransportName,
    run: Callable[[Coroutine[Any, Any, dict[str, str]]], dict[str, str]],
    tls: Tls,
) -> None:
    # Through a proxy aiohttp takes the place of the others.
    chosen = [each for each in (*CERTAIN, *AMBIGUOUS) if name == "aiohttp" or "proxy" not in each]

    async def main() -> dict[str, str]:
        faults = {each: await wrong(name, each, tls) for each in chosen if each not in SLOW}
        return faults | dict(
            zip(SLOW, await asyncio.gather(*(wrong(name, each, tls) for each in SLOW)), strict=True)
        )

    faults = {each: fault for each, fault in run(main()).items() if fault}
    assert not faults


async def wrong(name: TransportName, each: str, tls: Tls) -> str:
    """What is wrong with the fault that a case ends with; nothing: ''."""
    case, code = {**CERTAIN, **AMBIGUOUS}[each]
    with pytest.MonkeyPatch.context() as env:
        try:
            response = await case(partial(opened, name), tls, env)
        except SendFault as fault:
            told = (fault.code, fault.ambiguous)
            if told != (code, each in AMBIGUOUS):
                return f"it is {told}"
            return "it shows a secret" if "secret" in str(fault) or "abc" in str(fault) else ""
    return f"there is none, but {response}"


# --- at most once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [hangs_up, resets])
async def test_request_on_a_dying_connection_is_not_sent_again(
    transport: MakeTransport,
    end: Callable[[Reader, Writer], Awaitable[None]],
) -> None:
    connections = 0
    requests = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal connections, requests
        connections += 1
        while requests < 2:
            await read_request(reader)
            requests += 1
            if requests < 2:
                writer.write(answer())
        if end is resets:
            reset(writer)

    async with tcp_server(handle) as port, transport(url(port)) as by:
        await post(by)
        with pytest.raises(SendFault, match="RESET"):
            await post(by)
        assert (connections, requests) == (1, 2)


async def test_connection_closed_while_idle_is_replaced(transport: MakeTransport) -> None:
    closed = asyncio.Queue[None]()

    async def once(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(answer())
        writer.write_eof()
        assert await reader.read() == b""  # The client has seen our end and closed its own.
        closed.put_nowait(None)

    async with tcp_server(once) as port, transport(url(port)) as by:
        for _ in range(3):
            assert (await post(by)).status == 200
            await closed.get()


async def test_redirect_is_an_answer_like_any_other(transport: MakeTransport) -> None:
    async with (
        tcp_server(says(answer(307, BODY, "Location: /elsewhere"))) as port,
        transport(url(port)) as by,
    ):
        assert (await post(by)).status == 307


# --- answers -------------------------------------------------------------------------------------------


async def test_answer_is_returned_as_it_came(transport: MakeTransport) -> None:
    async with tcp_server(says(answer(429, b"{}", "Retry-After: 7"))) as port, transport(url(port)) as by:
        response = await post(by)
    assert (response.status, response.headers["retry-after"], response.body) == (429, "7", b"{}")


async def test_answer_in_pieces_is_put_together(transport: MakeTransport) -> None:
    async def trickle(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for byte in BODY:
            writer.write(b"1\r\n" + bytes([byte]) + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with tcp_server(trickle) as port, transport(url(port)) as by:
        assert (await post(by)).body == BODY


async def test_compressed_answer_is_read(transport: MakeTransport) -> None:
    packed = gzip.compress(BODY)
    async with (
        tcp_server(says(answer(200, packed, "Content-Encoding: gzip"))) as port,
        transport(url(port)) as by,
    ):
        assert (await post(by)).body == BODY


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(answer()[:-5], id="half a body"),
        pytest.param(answer(200, gzip.compress(BODY)[:-5], "Content-Encoding: gzip"), id="unreadable body"),
    ],
)
async def test_acceptance_counts_even_if_its_body_is_lost(transport: MakeTransport, data: bytes) -> None:
    async with tcp_server(says(data)) as port, transport(url(port)) as by:
        assert (await post(by)).status == 200


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
async def test_huge_answer_is_cut(compressed: bool, transport: MakeTransport) -> None:
    page = b"<" * (10 * ANSWER_LIMIT)
    huge = answer(404, gzip.compress(page), "Content-Encoding: gzip") if compressed else answer(404, page)

    async def handle(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            writer.write(huge)

    async with tcp_server(handle) as port, transport(url(port)) as by:
        for _ in range(2):
            assert (await post(by)).body == page[:ANSWER_LIMIT]


async def test_the_rest_of_a_huge_answer_is_dropped_with_its_connection(transport: MakeTransport) -> None:
    ended = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(answer(404, b"<" * (100 * ANSWER_LIMIT)))
        try:
            await reader.read()
        finally:
            ended.set()

    async with tcp_server(handle) as port, transport(url(port)) as by:
        await post(by)
        await ended.wait()


# --- connections ---------------------------------------------------------------------------------------


async def test_there_are_as_many_connections_as_requests_and_they_are_kept(transport: MakeTransport) -> None:
    connections = 0
    held = 0
    all_there = asyncio.Event()
    all_there.set()

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal connections, held
        connections += 1
        while True:
            await read_request(reader)
            if not all_there.is_set():
                held += 1
                if held == 150:
                    all_there.set()
                await all_there.wait()
            writer.write(answer(200, BODY, "Set-Cookie: a=b; Path=/"))

    async with tcp_server(handle) as port, transport(url(port)) as by:
        await asyncio.gather(*(post(by) for _ in range(150)))
        all_there.clear()
        responses = await asyncio.gather(*(post(by) for _ in range(150)))
        assert {response.status for response in responses} == {200}
        assert connections >= 150
        before = connections
        for _ in range(3):
            await asyncio.gather(*(post(by) for _ in range(50)))
        assert connections == before


async def test_request_has_the_given_headers_and_few_others(transport: MakeTransport) -> None:
    heads: list[bytes] = []

    async def handle(reader: Reader, writer: Writer) -> None:
        while True:
            heads.append((await read_request(reader))[0])
            writer.write(answer(200, BODY, "Set-Cookie: a=b; Path=/"))

    async with tcp_server(handle) as port, transport(url(port, host="localhost")) as by:
        for _ in range(2):
            await post(by)  # Clients keep no cookies for bare addresses.
    names = [{line.split(b":")[0] for line in head.split(b"\r\n")[1:-2]} - {b"Accept"} for head in heads]
    own = {b"Accept-Encoding", b"Content-Length", b"Host", b"User-Agent"}
    assert names == [own | {b"Authorization", b"Content-Type"}] * 2
    assert all(b"User-Agent: push-listener\r\n" in head for head in heads)


async def test_cancelled_request_ends_with_its_connection_by_its_timeout(
    transport: MakeTransport,
) -> None:
    reached = asyncio.Event()
    ends: list[asyncio.Event] = []  # of each connection

    async def handle(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        ends.append(ended := asyncio.Event())
        reached.set()
        await reader.read()
        ended.set()

    async with tcp_server(handle) as port, transport(url(port), connect_timeout=0.2, timeout=0.3) as by:
        async with asyncio.timeout(PATIENCE):
            while True:  # until one is cancelled: on a slow machine the timeout of the request may come first
                reached.clear()
                task = asyncio.create_task(post(by))
                reaching = asyncio.create_task(reached.wait())
                await asyncio.wait({task, reaching}, return_when=asyncio.FIRST_COMPLETED)
                reaching.cancel()
                if task.cancel():
                    break
                await asyncio.wait({task})
            with pytest.raises(asyncio.CancelledError):
                await task
            for ended in ends:
                await ended.wait()


@pytest.mark.parametrize("status", [200, 404])
async def test_answer_that_stalls_takes_its_connection_with_it(transport: MakeTransport, status: int) -> None:
    ends: list[asyncio.Event] = []  # of each connection

    async def handle(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        ends.append(ended := asyncio.Event())
        writer.write(answer(status)[:-5])
        await reader.read()
        ended.set()

    async with tcp_server(handle) as port, transport(url(port), connect_timeout=0.2, timeout=0.3) as by:
        async with asyncio.timeout(PATIENCE):
            while True:  # until half an answer comes: on a slow machine the timeout may come first
                before = len(ends)
                (result,) = await asyncio.gather(post(by), return_exceptions=True)
                if len(ends) > before and isinstance(result, Response if status == 200 else SendFault):
                    break
            for ended in ends:
                await ended.wait()


async def test_connect_timeout_must_leave_time_for_the_answer(transport: MakeTransport) -> None:
    with pytest.raises(ValueError, match="connect_timeout"):
        async with transport("http://fcm.example/", connect_timeout=15.0, timeout=15.0):
            pass


# --- the end -------------------------------------------------------------------------------------------


async def test_requests_in_flight_fail_when_the_transport_is_closed(transport: MakeTransport) -> None:
    reached = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        reached.set()
        await reader.read()

    async with tcp_server(handle) as port, transport(url(port)) as by:
        in_flight = asyncio.create_task(post(by))
        await reached.wait()
        await by.close()
        with pytest.raises(SendFault) as raised:
            await in_flight
        assert (raised.value.code, raised.value.ambiguous) == ("RESET", True)
        with pytest.raises(RuntimeError, match="closed"):
            await post(by)


async def test_idle_connections_end_when_the_transport_is_closed(transport: MakeTransport) -> None:
    ended = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(answer())
        await reader.read()
        ended.set()

    async with tcp_server(handle) as port, transport(url(port)) as by:
        await post(by)
        await by.close()
        await ended.wait()


LEAVES = """
import asyncio, sys
from listener.fcm.transports.base import Outgoing
from listener.fcm.transports.choose import make_transport

async def main():
    transport = make_transport(sys.argv[1], sys.argv[2], connect_timeout=60, timeout=600)
    posts = [
        asyncio.create_task(transport.post({"Authorization": "Bearer abc"}, Outgoing(lambda: b"{}")))
        for _ in range(1000)
    ]
    await asyncio.to_thread(sys.stdin.readline)
    for each in posts:
        each.cancel()
    await asyncio.wait(posts)
    await transport.close()
    print("closed")

asyncio.run(main())
print("left")
"""


@pytest.mark.parametrize("name", NAMES)
async def test_process_with_a_thousand_requests_in_flight_ends_at_once(name: TransportName) -> None:
    reached = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        reached.set()
        await reader.read()

    async with tcp_server(handle) as port:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", LEAVES, name, f"http://127.0.0.1:{port}/"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await reached.wait()
        said, complaints = await process.communicate(b"go\n")
    assert (process.returncode, said, complaints) == (0, b"closed\nleft\n", b"")


# --- proxies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("name", "variable"),
    [*((name, "HTTPS_PROXY") for name in NAMES), ("http2", "https_proxy"), ("http2", "ALL_PROXY")],
)
def test_https_goes_through_the_proxy(
    name: TransportName,
    variable: str,
    run: Callable[[Coroutine[Any, Any, None]], None],
    tls: Tls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            proxy = await stack.enter_async_context(tunnelling_proxy())
            port = await stack.enter_async_context(tcp_server(says(answer(), then=silent), tls.server))
            monkeypatch.setenv("SSL_CERT_FILE", str(tls.ca_file))
            monkeypatch.setenv(variable, f"user:secret@127.0.0.1:{proxy.port}")
            by = await stack.enter_async_context(opened(name, url(port, "https", "localhost")))
            assert (await post(by)).body == BODY
            (head,) = proxy.heads
            assert head.startswith(f"CONNECT localhost:{port} HTTP/1.1\r\n".encode())
            assert b"proxy-authorization: basic dxnlcjpzzwnyzxq=\r\n" in head.lower()
            assert b"Bearer" not in head

    run(main())


async def test_no_fault_of_a_proxy_shows_a_part_of_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in (
        "http://user:S3cr3t/x@127.0.0.1:1",
        "http://user:12/S3cr3t@127.0.0.1:1",
        "http://user:S3cr3t?x@127.0.0.1:1",
        "http://user:12#S3cr3t@127.0.0.1:1",
        "user:S3cr3t/x@127.0.0.1:1",
        "S3cr3t://user:S3cr3t@127.0.0.1:1",
        "http://user:S3cr3t@127.0.0.1:S3cr3t",
        "http://user:S3cr3t@S3cr3t.invalid:1",
        "http://user:S3cr3t@127.0.0.1:1",
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        async with opened("http2", url(443, "https", "fcm.example")) as by:
            with pytest.raises(SendFault) as raised:
                await post(by)
        assert raised.value.code in ("PROXY", "DNS"), proxy
        assert "s3cr3t" not in str(raised.value).lower(), proxy


async def test_http_goes_through_the_proxy(transport: MakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[bytes] = []

    async def forward(reader: Reader, writer: Writer) -> None:
        while True:
            heads.append((await read_request(reader))[0])
            writer.write(answer())

    async with tcp_server(forward) as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        async with transport("http://fcm.example/v1/x") as by:
            for _ in range(2):
                await post(by)
    assert [head.split(b"\r\n")[0] for head in heads] == [b"POST http://fcm.example/v1/x HTTP/1.1"] * 2


async def test_no_proxy_is_honoured(transport: MakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    for exempt in ("127.0.0.1", "localhost,127.0.0.1", "*"):
        monkeypatch.setenv("NO_PROXY", exempt)
        async with tcp_server(says(answer())) as port, transport(url(port)) as by:
            assert (await post(by)).status == 200, exempt
