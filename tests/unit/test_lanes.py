"""Lanes: how many there are, who has to wait, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listener.fcm.transports import lanes as module
from listener.fcm.transports.lanes import OPENING, ROOM, Lane, Lanes


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine, the first requests are waited for."""
    monkeypatch.setattr(module, "HEAD_START", 60.0)


def made(*, keep: float = 60.0) -> Lanes[int]:
    numbers = itertools.count()
    return Lanes(lambda: next(numbers), keep=keep)


def taken(lanes: Lanes[int], most: int) -> list[Lane[int]]:
    """As many places as there are just now, up to ``most``."""
    return [lane for _ in range(most) if (lane := lanes.take()) is not None]


async def test_one_after_the_other_share_a_lane() -> None:
    lanes = made()
    for _ in range(5):
        (lane,) = taken(lanes, 1)
        lanes.done(lane, connected=True)
    assert lanes.clients == [0]


async def test_the_first_ones_open_a_lane_each_and_the_others_wait() -> None:
    lanes = made()
    places = taken(lanes, OPENING + 1)
    assert [lane.client for lane in places] == list(range(OPENING))


async def test_an_answer_makes_room_for_those_who_wait() -> None:
    lanes = made()
    (first, *_) = taken(lanes, OPENING)
    waiting = [asyncio.create_task(lanes.wait()) for _ in range(ROOM)]
    await asyncio.sleep(0)
    lanes.done(first, connected=True)
    assert {lane.client for lane in await asyncio.gather(*waiting)} == {first.client}
    assert first.in_flight == ROOM


async def test_lanes_are_as_many_as_are_needed() -> None:
    lanes = made()
    for lane in taken(lanes, OPENING):
        lanes.done(lane, connected=True)
    assert len(taken(lanes, 2000)) == OPENING * ROOM + 1
    assert len(lanes.clients) == OPENING + 1


async def test_a_thousand_at_once_need_ten_lanes() -> None:
    lanes = made()

    async def send() -> None:
        lane = lanes.take() or await lanes.wait()
        await asyncio.sleep(0.01)
        lanes.done(lane, connected=True)

    for _ in range(3):
        await asyncio.gather(*(send() for _ in range(10 * ROOM)))
    assert len(lanes.clients) == 10


async def test_failing_to_connect_lets_one_of_those_who_wait_try() -> None:
    lanes = made()
    (first, *_) = taken(lanes, OPENING)
    waiting = [asyncio.create_task(lanes.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    lanes.done(first, connected=False)
    done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [first]
    assert len(others) == 2
    for task in others:
        task.cancel()
    await asyncio.wait(others)


async def test_a_lane_that_lost_its_connection_is_opened_anew() -> None:
    lanes = made()
    (lane,) = taken(lanes, 1)
    lanes.done(lane, connected=True)
    first, second = taken(lanes, 2)
    assert first is second is lane
    lanes.done(first, connected=False)
    assert all(other is not lane for other in taken(lanes, OPENING))
    lanes.done(second, connected=True)
    assert taken(lanes, 1) == [lane]


async def test_a_lane_that_was_not_used_for_long_is_opened_anew() -> None:
    lanes = made(keep=0.0)
    (lane,) = taken(lanes, 1)
    lanes.done(lane, connected=True)
    first, second = taken(lanes, 2)
    assert first is lane
    assert second is not lane


async def test_who_waits_does_not_wait_for_an_answer_that_does_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HEAD_START", 0.01)
    lanes = made()
    places = taken(lanes, OPENING)
    assert await lanes.wait() in places


async def test_a_place_for_one_who_has_gone_is_passed_on() -> None:
    lanes = made()
    (first, *_) = taken(lanes, OPENING)
    gone, stays = (asyncio.create_task(lanes.wait()) for _ in range(2))
    await asyncio.sleep(0)
    lanes.done(first, connected=False)  # the place is for the first of the two
    gone.cancel()
    assert await stays is first
    assert gone.cancelled()


@given(
    st.lists(st.tuples(st.sampled_from([True, False, None]), st.integers(0, 3)), min_size=1, max_size=400),
    st.integers(0, 20),
)
@settings(deadline=None, max_examples=60)
def test_everybody_has_a_turn_and_no_lane_is_overcrowded(
    requests: list[tuple[bool | None, int]], impatient: int
) -> None:
    async def main() -> None:
        lanes = made()
        seen: set[Lane[int]] = set()

        async def send(connected: bool | None, turns: int) -> None:
            lane = lanes.take() or await lanes.wait()
            try:
                seen.add(lane)
                assert lane.in_flight <= ROOM
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                lanes.done(lane, connected=connected)

        tasks = [asyncio.create_task(send(*each)) for each in requests]
        await asyncio.sleep(0)
        for task in tasks[:impatient]:
            task.cancel()
        async with asyncio.timeout(60):
            await asyncio.wait(tasks)
        assert not [task for task in tasks if not task.cancelled() and task.exception()]
        assert {lane.in_flight for lane in seen} == {0}
        assert len(taken(lanes, OPENING)) == OPENING

    asyncio.run(main())
