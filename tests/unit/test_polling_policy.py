"""When to be awake."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.wakeup.polling_policy import PollingPolicy, Rate, Want

LOOK = 0.005


def rings(
    pace: PollingPolicy, since: float, seconds: float, rate: float, *, seed: int | None = None
) -> list[Want]:
    """The bell rings so often, evenly, or as it comes; what was wanted after each ring."""
    rng, now, wants = random.Random(seed), since, []
    while now < since + seconds:
        now += 1 / rate if seed is None else rng.expovariate(rate)
        pace.rang(now)
        wants.append(pace.want(now))
    return wants


def looks(pace: PollingPolicy, since: float, rate: float, most: float = 60.0) -> float | None:
    """Looks at the queue while so many rows a second come; after how long it is time to sleep."""
    now, owed = since, 0.0
    while now < since + most:
        now += LOOK
        owed += rate * LOOK
        if pace.looked(now, int(owed)):
            return now - since
        owed -= int(owed)
    return None


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 5000)), max_size=50))
def test_a_rate_is_never_negative_nor_more_than_it_remembers(events: list[tuple[float, int]]) -> None:
    rate, now = Rate(), 100.0
    for pause, count in events:
        now += pause
        before = rate.at(now)
        rate.add(now, count)
        assert before <= rate.at(now) <= 800.0
        assert 0.0 <= rate.at(now + 1.0) <= rate.at(now)


@pytest.mark.parametrize("per_second", [50.0, 300.0])
def test_a_rate_becomes_what_it_is(per_second: float) -> None:
    rate, now = Rate(), 7.0
    for _ in range(int(3 * per_second)):
        now += 1 / per_second
        rate.add(now)
    assert rate.at(now) == pytest.approx(per_second, rel=0.1)


def test_one_ring_and_a_hundred_at_a_low_rate_are_no_reason() -> None:
    assert set(rings(PollingPolicy(), 100.0, 10.0, 10.0)) == {Want.SLEEP}


@pytest.mark.parametrize("seed", range(5))
def test_two_hundred_a_second_are_no_reason_unless_transactions_queue(seed: int) -> None:
    assert Want.AWAKE not in rings(PollingPolicy(), 100.0, 60.0, 200.0, seed=seed)


@pytest.mark.parametrize("rate", [700.0, 2_000.0])
def test_a_bell_that_rings_all_the_time_is_a_reason_within_a_third_of_a_second(rate: float) -> None:
    assert Want.AWAKE in rings(PollingPolicy(), 100.0, 0.33, rate)


def test_what_was_refused_is_not_asked_for_again_at_once() -> None:
    pace = PollingPolicy()
    rings(pace, 100.0, 0.5, 2_000.0)
    assert pace.want(100.5) is Want.AWAKE
    pace.tried(100.5)
    assert pace.want(100.54) is Want.SLEEP
    rings(pace, 100.5, 0.06, 2_000.0)
    assert pace.want(100.56) is Want.AWAKE


def test_whether_transactions_queue_is_asked_once_a_second() -> None:
    pace = PollingPolicy()
    assert rings(pace, 100.0, 1.0, 100.0)[-1] is Want.AWAKE_IF_CROWDED
    pace.tried(101.0)
    assert set(rings(pace, 101.0, 0.97, 100.0)) == {Want.SLEEP}
    assert rings(pace, 101.97, 0.05, 100.0)[-1] is Want.AWAKE_IF_CROWDED


def test_it_sleeps_when_nothing_comes_but_not_before_some_tens_of_milliseconds() -> None:
    pace = PollingPolicy()
    pace.took(100.0)
    after = looks(pace, 100.0, 0.0)
    assert after is not None
    assert 0.1 < after < 0.4


@pytest.mark.parametrize("rate", [20.0, 100.0])
def test_it_sleeps_when_little_comes(rate: float) -> None:
    pace = PollingPolicy()
    pace.took(100.0)
    assert looks(pace, 100.0, rate) is not None


@pytest.mark.parametrize("rate", [300.0, 10_000.0])
def test_it_stays_awake_while_much_comes(rate: float) -> None:
    pace = PollingPolicy()
    pace.took(100.0)
    assert looks(pace, 100.0, rate) is None


def test_much_is_forgotten_as_soon_as_enough() -> None:
    pace = PollingPolicy()
    pace.took(100.0)
    assert looks(pace, 100.0, 10_000.0, most=3.0) is None
    after = looks(pace, 103.0, 0.0)
    assert after is not None
    assert after < 0.4


def test_what_is_wanted_again_soon_is_kept_for_longer_each_time_up_to_some_seconds() -> None:
    pace, now, kept = PollingPolicy(), 100.0, []
    for _ in range(9):
        pace.took(now)
        after = looks(pace, now, 0.0)
        assert after is not None
        kept.append(after)
        now += after
        pace.let_go(now)
        now += 0.1
    assert kept == sorted(kept)
    assert kept[-2:] == pytest.approx([3.4, 3.4], abs=0.2)
    pace.took(now + 1.0)
    assert looks(pace, now + 1.0, 0.0) == pytest.approx(kept[0], abs=LOOK)


def test_who_cannot_see_what_comes_keeps_the_lock_for_longer_when_it_was_missed_at_once() -> None:
    pace, now, kept = PollingPolicy(), 100.0, []
    for _ in range(8):
        pace.took(now)
        kept.append(pace.blind)
        now += pace.blind
        pace.let_go(now)
        now += 0.1
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (1.0, 3.2)
    pace.took(now + 60.0)
    assert pace.blind == 1.0
