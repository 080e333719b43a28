"""The streams of the page: one sampler for all, a bound, slow clients, and the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from aiohttp import web

from listener.web.page.live import MOST, Streams
from tests.support.page_server import served
from tests.support.service import PATIENCE, until


class Bench:
    """Streams on a server of their own, and samples that the test makes."""

    def __init__(self, **arguments: float) -> None:
        self.watched = asyncio.Event()
        self.asked = asyncio.Event()
        self.samples = 0
        self.sample: Mapping[str, str] = {}
        self.fault: Exception | None = None
        self.streams = Streams(self._sample, self.watched, **{"interval": 0.01, **arguments})  # type: ignore[arg-type]
        self.port = 0

    async def _sample(self) -> Mapping[str, str]:
        self.samples += 1
        self.asked.set()
        if self.fault is not None:
            raise self.fault
        return {"count": str(self.samples), **self.sample}

    async def sampled(self) -> None:
        """Returns after the next sample."""
        self.asked.clear()
        async with asyncio.timeout(PATIENCE):
            await self.asked.wait()


@asynccontextmanager
async def bench(**arguments: float) -> AsyncIterator[Bench]:
    made = Bench(**arguments)
    app = web.Application()
    app.router.add_get("/events", made.streams.watch)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=PATIENCE)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.port = runner.addresses[0][1]
        yield made
    finally:
        made.streams.close()
        await runner.cleanup()


@asynccontextmanager
async def watching(port: int) -> AsyncIterator[aiohttp.ClientResponse]:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{port}/events") as answer,
    ):
        yield answer


async def event(answer: aiohttp.ClientResponse) -> tuple[str, str]:
    """Name and data of the next event; comments are left out. Raises EOFError at the end of the stream."""
    name, data = "", []
    async with asyncio.timeout(PATIENCE):
        while line := (await answer.content.readline()).decode():
            field, _, value = line.rstrip("\r\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif not line.strip() and data:
                return name, "\n".join(data)
    raise EOFError


async def rest(answer: aiohttp.ClientResponse, until: bytes) -> bool:
    """Reads on until this has come; False: the stream ended before."""
    seen = b""
    async with asyncio.timeout(PATIENCE):
        with suppress(aiohttp.ClientError):
            while chunk := await answer.content.readany():
                seen = seen[-100:] + chunk
                if until in seen:
                    return True
    return False


async def test_nobody_is_sampled_for_while_nobody_watches() -> None:
    async with bench() as made:
        assert (made.samples, made.watched.is_set()) == (0, False)
        async with watching(made.port) as one:
            assert (await event(one))[0] == "count"
            assert made.watched.is_set()
        await until(lambda: not made.watched.is_set())
        await until(lambda: made.streams._sampling is None)
        before = made.samples
        async with watching(made.port) as one:
            assert await event(one) == ("count", str(before + 1))


async def test_all_watchers_get_the_same_samples() -> None:
    async with bench(interval=3600.0) as made, watching(made.port) as one:
        assert await event(one) == ("count", "1")
        async with watching(made.port) as two, watching(made.port) as three:
            assert [await event(each) for each in (two, three)] == [("count", "1")] * 2
    assert made.samples == 1


async def test_what_has_not_changed_is_not_sent_again() -> None:
    async with bench() as made:
        made.sample = {"same": "a\nb"}
        async with watching(made.port) as one:
            found = [await event(one) for _ in range(4)]
    assert [each for each in found if each[0] == "same"] == [("same", "a\nb")]
    assert len([each for each in found if each[0] == "count"]) == 3


async def test_an_event_may_have_no_name() -> None:
    async with bench() as made:
        made.sample = {"": "<p>"}
        async with watching(made.port) as one:
            assert ("", "<p>") in [await event(one), await event(one)]


async def test_there_is_a_bound_and_a_place_that_comes_free_is_taken() -> None:
    async with bench(most=2, interval=3600.0) as made, watching(made.port) as one:
        await event(one)
        async with watching(made.port) as two, watching(made.port) as three:
            await event(two)
            assert (three.status, three.headers["Retry-After"]) == (503, "10")
        await until_taken(made.port)


async def until_taken(port: int) -> None:
    """Returns once the server, which learns of it a moment later, has a place."""
    async with asyncio.timeout(PATIENCE):
        while True:
            async with watching(port) as answer:
                if answer.status == 200:
                    assert (await event(answer))[0] == "count"
                    return


async def test_a_sample_that_fails_ends_nothing() -> None:
    async with bench() as made, watching(made.port) as one:
        await event(one)
        made.fault = RuntimeError("a payload")
        await made.sampled()
        await made.sampled()
        made.fault = None
        assert (await event(one))[0] == "count"


async def test_a_comment_keeps_the_stream_open() -> None:
    async with bench(ping=0.01, interval=3600.0) as made, watching(made.port) as one:
        await event(one)
        async with asyncio.timeout(PATIENCE):
            while not (await one.content.readline()).startswith(b": "):
                pass


@asynccontextmanager
async def deaf(port: int) -> AsyncIterator[socket.socket]:
    """A client that asks for the stream and reads nothing of it."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        yield client


async def test_a_slow_client_is_dropped_and_the_others_are_not() -> None:
    async with bench(patience=2.0) as made, watching(made.port) as one:
        made.sample = {"much": "x" * 8_000_000 + "end"}
        assert await rest(one, until=b"xend")  # It has read the large sample, so it is not the slow client.
        async with deaf(made.port):
            await until(lambda: len(made.streams._open) == 2)
            async with asyncio.timeout(PATIENCE):
                while len(made.streams._open) == 2:
                    await one.content.readany()
            made.sample = {"next": "has come"}
            assert await rest(one, until=b"data: has come")


async def test_a_slow_client_gets_the_newest_only() -> None:
    """What waits for a client is bounded: an event that it has not been sent yet gives way to the next of its name."""
    async with bench(patience=PATIENCE) as made, deaf(made.port):
        made.sample = {"much": "x" * 8_000_000}
        await until(lambda: len(made.streams._open) == 1)
        (stream,) = made.streams._open
        await until(lambda: stream._is_sending)
        for _ in range(20):
            await made.sampled()
        assert set(stream._waiting) <= {"count", "much"}
        assert len(made.streams._open) == 1


@pytest.mark.parametrize("is_deaf", [False, True])
async def test_at_the_end_every_stream_is_closed_at_once(is_deaf: bool) -> None:
    """Also that of a client which takes nothing. No second of patience is needed for it."""
    async with bench(patience=3600.0) as made, watching(made.port) as one:
        await event(one)
        if is_deaf:
            async with deaf(made.port):
                await until(lambda: len(made.streams._open) == 2)
                made.sample = {"much": "x" * 8_000_000}
                await until(lambda: sum(each._is_sending for each in made.streams._open) > 0)
                made.streams.close()
        else:
            made.streams.close()
        assert (made.streams._open, made.watched.is_set()) == (set(), False)
        assert not await rest(one, until=b"never")
        async with watching(made.port) as late:
            assert late.status == 503


async def test_the_page_samples_its_snapshot() -> None:
    watched = asyncio.Event()
    async with served(host="127.0.0.1", watched=watched) as page, watching(page.port) as one:
        name, text = await event(one)
        assert (name, text.startswith("This page cannot read the database")) == ("verdict", True)
        assert watched.is_set()


async def test_the_page_has_sixteen_places() -> None:
    async with (
        served(host="127.0.0.1") as page,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        asked = [await http.get(f"http://127.0.0.1:{page.port}/events") for _ in range(MOST + 1)]
        assert [answer.status for answer in asked] == [200] * 16 + [503]
        first = [await event(answer) for answer in asked[:16]]
        assert {name for name, _ in first} == {"verdict"}
        # One render is for all: sooner or later they have the same number.
        numbers = [int((await event(answer))[1]) for answer in asked[:16]]
        async with asyncio.timeout(PATIENCE):
            while len(set(numbers)) > 1:
                last = numbers.index(min(numbers))
                numbers[last] = int((await event(asked[last]))[1])
        for answer in asked:
            answer.close()
