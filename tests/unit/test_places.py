"""The places of requests."""

from __future__ import annotations

import asyncio
import random

import pytest

from listener.limits.places import Places


async def _taken(places: Places, *, is_high: bool) -> None:
    if not places.take(is_high=is_high):
        await places.wait(is_high=is_high)


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_normal_priority_leaves_places_for_high() -> None:
    places = Places(3, 2)
    assert [places.take(is_high=False) for _ in range(3)] == [True, True, False]
    assert [places.take(is_high=True) for _ in range(2)] == [True, False]


def test_high_priority_may_have_all_places() -> None:
    places = Places(3, 2)
    assert [places.take(is_high=True) for _ in range(4)] == [True, True, True, False]
    assert not places.take(is_high=False)
    places.give_back(is_high=True)
    assert places.take(is_high=False)


async def test_high_priority_goes_first_and_others_in_their_order() -> None:
    places, order = Places(1, 1), []
    assert places.take(is_high=True)

    async def use(name: str, is_high: bool) -> None:
        await _taken(places, is_high=is_high)
        order.append(name)
        places.give_back(is_high=is_high)

    async with asyncio.TaskGroup() as group:
        for name in ("a", "b", "HIGH", "c"):
            group.create_task(use(name, name == "HIGH"))
        await _settle()
        places.give_back(is_high=True)
    assert order == ["HIGH", "a", "b", "c"]


async def test_a_place_for_high_priority_only_is_not_handed_to_normal_priority() -> None:
    places = Places(2, 1)
    assert places.take(is_high=False)
    assert places.take(is_high=True)
    waiting = asyncio.create_task(_taken(places, is_high=False))
    await _settle()
    places.give_back(is_high=True)
    await _settle()
    assert not waiting.done()
    places.give_back(is_high=False)
    await waiting


@pytest.mark.parametrize("comes_first", [False, True], ids=["cancelled first", "place first"])
async def test_who_is_cancelled_has_no_place(comes_first: bool) -> None:
    places = Places(1, 1)
    assert places.take(is_high=False)
    one, other = (asyncio.create_task(_taken(places, is_high=False)) for _ in range(2))
    await _settle()
    if comes_first:
        places.give_back(is_high=False)
        one.cancel()
    else:
        one.cancel()
        places.give_back(is_high=False)
    with pytest.raises(asyncio.CancelledError):
        await one
    await other
    places.give_back(is_high=False)
    assert places.take(is_high=True)


async def test_the_places_are_never_more_and_never_lost() -> None:
    rng, places, under_way = random.Random(1), Places(5, 3), {True: 0, False: 0}

    async def use(is_high: bool) -> None:
        await _taken(places, is_high=is_high)
        under_way[is_high] += 1
        try:
            assert under_way[False] <= 3
            assert sum(under_way.values()) <= 5
            await asyncio.sleep(0)
        finally:
            under_way[is_high] -= 1
            places.give_back(is_high=is_high)

    tasks = []
    for _ in range(300):
        tasks.append(asyncio.create_task(use(rng.random() < 0.3)))
        if rng.random() < 0.5:
            await asyncio.sleep(0)
        if rng.random() < 0.3:
            rng.choice(tasks).cancel()
    await asyncio.wait(tasks)
    assert not [task for task in tasks if not task.cancelled() and task.exception()]
    assert [places.take(is_high=True) for _ in range(6)] == [True] * 5 + [False]
