"""HTTP/2 connections: how many there are, which requests wait, and that none waits for ever."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listener.fcm.transports import http2_pool
from listener.fcm.transports.http2_pool import OPENING_LIMIT, STREAMS, Http2Connection, Http2Pool


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, a new connection gets one request until that is answered."""
    monkeypatch.setattr(http2_pool, "ASSUMED_OPEN_AFTER", 60.0)


def make_pool(*, keepalive: float = 60.0) -> Http2Pool[int]:
    numbers = itertools.count()
    return Http2Pool(lambda: next(numbers), keepalive=keepalive)


def take(pool: Http2Pool[int], most: int) -> list[Http2Connection[int]]:
    """A connection for each of ``most`` requests, as far as the pool has capacity just now."""
    return [connection for _ in range(most) if (connection := pool.take()) is not None]


async def test_requests_one_after_the_other_share_a_connection() -> None:
    pool = make_pool()
    for _ in range(5):
        (connection,) = take(pool, 1)
        pool.release(connection, is_open=True)
    assert pool.clients == [0]


async def test_the_first_requests_open_a_connection_each_and_the_others_wait() -> None:
    pool = make_pool()
    taken = take(pool, OPENING_LIMIT + 1)
    assert [connection.client for connection in taken] == list(range(OPENING_LIMIT))


async def test_an_answer_frees_a_connection_for_the_requests_that_wait() -> None:
    pool = make_pool()
    (first, *_) = take(pool, OPENING_LIMIT)
    waiting = [asyncio.create_task(pool.acquire()) for _ in range(STREAMS)]
    await asyncio.sleep(0)
    pool.release(first, is_open=True)
    assert {connection.client for connection in await asyncio.gather(*waiting)} == {first.client}
    assert first.in_flight == STREAMS


async def test_a_request_of_high_priority_gets_the_next_place() -> None:
    pool = make_pool()
    (first, *_) = take(pool, OPENING_LIMIT)
    normal = [asyncio.create_task(pool.acquire()) for _ in range(50)]
    await asyncio.sleep(0)
    high = asyncio.create_task(pool.acquire(is_high=True))
    await asyncio.sleep(0)
    pool.release(first, is_open=False)  # one place
    assert await high is first
    assert not any(task.done() for task in normal)
    for task in normal:
        task.cancel()
    await asyncio.wait(normal)


async def test_there_are_as_many_connections_as_requests_need() -> None:
    pool = make_pool()
    for connection in take(pool, OPENING_LIMIT):
        pool.release(connection, is_open=True)
    assert len(take(pool, 2000)) == OPENING_LIMIT * STREAMS + 1
    assert len(pool.clients) == OPENING_LIMIT + 1


async def test_a_thousand_requests_at_once_need_ten_connections() -> None:
    pool = make_pool()

    async def send() -> None:
        connection = pool.take() or await pool.acquire()
        await asyncio.sleep(0.01)
        pool.release(connection, is_open=True)

    for _ in range(3):
        await asyncio.gather(*(send() for _ in range(10 * STREAMS)))
    assert len(pool.clients) == 10


async def test_after_a_failed_attempt_to_connect_one_waiting_request_tries() -> None:
    pool = make_pool()
    (first, *_) = take(pool, OPENING_LIMIT)
    waiting = [asyncio.create_task(pool.acquire()) for _ in range(3)]
    await asyncio.sleep(0)
    pool.release(first, is_open=False)
    done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [first]
    assert len(others) == 2
    for task in others:
        task.cancel()
    await asyncio.wait(others)


async def test_a_lost_connection_is_opened_anew_by_one_request() -> None:
    pool = make_pool()
    (connection,) = take(pool, 1)
    pool.release(connection, is_open=True)
    first, second = take(pool, 2)
    assert first is second is connection
    pool.release(first, is_open=False)
    assert all(other is not connection for other in take(pool, OPENING_LIMIT))
    pool.release(second, is_open=True)
    assert take(pool, 1) == [connection]


async def test_an_expired_connection_is_opened_anew_by_one_request() -> None:
    pool = make_pool(keepalive=0.0)
    (connection,) = take(pool, 1)
    pool.release(connection, is_open=True)
    first, second = take(pool, 2)
    assert first is connection
    assert second is not connection


async def test_a_waiting_request_does_not_depend_on_an_answer_that_never_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http2_pool, "ASSUMED_OPEN_AFTER", 0.01)
    pool = make_pool()
    taken = take(pool, OPENING_LIMIT)
    assert await pool.acquire() in taken


async def test_a_cancelled_request_passes_its_connection_on() -> None:
    pool = make_pool()
    (first, *_) = take(pool, OPENING_LIMIT)
    gone, stays = (asyncio.create_task(pool.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    pool.release(first, is_open=False)  # The connection is for the first of the two.
    gone.cancel()
    assert await stays is first
    assert gone.cancelled()


@given(
    st.lists(st.tuples(st.sampled_from([True, False, None]), st.integers(0, 3)), min_size=1, max_size=400),
    st.integers(0, 20),
)
@settings(deadline=None, max_examples=60)
def test_every_request_has_a_turn_and_no_connection_exceeds_its_streams(
    requests: list[tuple[bool | None, int]], cancelled: int
) -> None:
    async def main() -> None:
        pool = make_pool()
        seen: set[Http2Connection[int]] = set()

        async def send(is_open: bool | None, turns: int) -> None:
            connection = pool.take() or await pool.acquire()
            try:
                seen.add(connection)
                assert connection.in_flight <= STREAMS
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                pool.release(connection, is_open=is_open)

        tasks = [asyncio.create_task(send(*each)) for each in requests]
        await asyncio.sleep(0)
        for task in tasks[:cancelled]:
            task.cancel()
        async with asyncio.timeout(60):
            await asyncio.wait(tasks)
        assert not [task for task in tasks if not task.cancelled() and task.exception()]
        assert {connection.in_flight for connection in seen} == {0}
        assert len(take(pool, OPENING_LIMIT)) == OPENING_LIMIT

    asyncio.run(main())
