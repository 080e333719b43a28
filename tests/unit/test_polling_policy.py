"""When a worker polls."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.wakeup.polling_policy import PollingPolicy, Rate, Want

LOOK = 0.005


def notifications(
    policy: PollingPolicy, since: float, seconds: float, rate: float, *, seed: int | None = None
) -> list[Want]:
    """Notifications come at a rate, evenly or (with a seed) at random; returns what was wanted after each."""
    rng, now, wants = random.Random(seed), since, []
    while now < since + seconds:
        now += 1 / rate if seed is None else rng.expovariate(rate)
        policy.notified(now)
        wants.append(policy.want(now))
    return wants


def polls(policy: PollingPolicy, since: float, rate: float, most: float = 60.0) -> float | None:
    """Polls while rows come at a rate; returns after how many seconds the policy stops."""
    now, owed = since, 0.0
    while now < since + most:
        now += LOOK
        owed += rate * LOOK
        if policy.looked(now, int(owed)):
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


def test_a_low_rate_of_notifications_is_no_reason_to_poll() -> None:
    assert set(notifications(PollingPolicy(), 100.0, 10.0, 10.0)) == {Want.SLEEP}


@pytest.mark.parametrize("seed", range(5))
def test_two_hundred_notifications_a_second_are_a_reason_only_if_transactions_queue(seed: int) -> None:
    assert Want.POLL not in notifications(PollingPolicy(), 100.0, 60.0, 200.0, seed=seed)


@pytest.mark.parametrize("rate", [700.0, 2_000.0])
def test_a_high_rate_is_a_reason_within_a_third_of_a_second(rate: float) -> None:
    assert Want.POLL in notifications(PollingPolicy(), 100.0, 0.33, rate)


def test_a_refused_lock_is_not_asked_for_again_at_once() -> None:
    policy = PollingPolicy()
    notifications(policy, 100.0, 0.5, 2_000.0)
    assert policy.want(100.5) is Want.POLL
    policy.tried(100.5)
    assert policy.want(100.54) is Want.SLEEP
    notifications(policy, 100.5, 0.06, 2_000.0)
    assert policy.want(100.56) is Want.POLL


def questions(policy: PollingPolicy, since: float, seconds: float) -> list[float]:
    """Notifications come 100 times a second; returns when the worker asks whether transactions queue, and none does."""
    asked, now = [], since
    while now < since + seconds:
        now += 0.01
        policy.notified(now)
        if policy.want(now) is Want.POLL_IF_CROWDED:
            policy.tried(now)
            asked.append(now - since)
    return asked


def test_whether_transactions_queue_is_asked_soon_again_and_then_once_a_second() -> None:
    policy = PollingPolicy()
    asked = questions(policy, 100.0, 6.0)
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert pauses[:6] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0], abs=0.02)
    assert min(pauses[6:]) > 0.97
    assert asked[0] < 0.1


def test_after_a_pause_it_is_asked_soon_again() -> None:
    policy = PollingPolicy()
    questions(policy, 100.0, 6.0)
    first, second, *_ = questions(policy, 109.0, 1.0)
    assert second - first == pytest.approx(0.1, abs=0.02)


def test_polling_stops_when_nothing_comes_but_not_at_once() -> None:
    policy = PollingPolicy()
    policy.started(100.0)
    after = polls(policy, 100.0, 0.0)
    assert after is not None
    assert 0.1 < after < 0.4


@pytest.mark.parametrize("rate", [20.0, 100.0])
def test_polling_stops_when_few_rows_come(rate: float) -> None:
    policy = PollingPolicy()
    policy.started(100.0)
    assert polls(policy, 100.0, rate) is not None


@pytest.mark.parametrize("rate", [300.0, 10_000.0])
def test_polling_goes_on_while_many_rows_come(rate: float) -> None:
    policy = PollingPolicy()
    policy.started(100.0)
    assert polls(policy, 100.0, rate) is None


def test_a_flood_is_forgotten_as_soon_as_a_trickle() -> None:
    policy = PollingPolicy()
    policy.started(100.0)
    assert polls(policy, 100.0, 10_000.0, most=3.0) is None
    after = polls(policy, 103.0, 0.0)
    assert after is not None
    assert after < 0.4


def test_a_lock_that_is_wanted_again_soon_is_held_longer_each_time_up_to_some_seconds() -> None:
    policy, now, kept = PollingPolicy(), 100.0, []
    for _ in range(9):
        policy.started(now)
        after = polls(policy, now, 0.0)
        assert after is not None
        kept.append(after)
        now += after
        policy.stopped(now)
        now += 0.1
    assert kept == sorted(kept)
    assert kept[-2:] == pytest.approx([3.4, 3.4], abs=0.2)
    policy.started(now + 1.0)
    assert polls(policy, now + 1.0, 0.0) == pytest.approx(kept[0], abs=LOOK)


def test_a_worker_that_cannot_look_holds_the_lock_longer_if_it_takes_it_again_soon() -> None:
    policy, now, kept = PollingPolicy(), 100.0, []
    for _ in range(8):
        policy.started(now)
        kept.append(policy.longest_unobserved)
        now += policy.longest_unobserved
        policy.stopped(now)
        now += 0.1
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (1.0, 3.2)
    policy.started(now + 60.0)
    assert policy.longest_unobserved == 1.0
