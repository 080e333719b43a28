"""The bucket: what it grants in any stretch of time, to whom first, and when again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from listener.fcm.outcome import Limit
from listener.limits.quota import LEAST_FRACTION, RECOVERY_S, Fraction, Quota

FCM = 600_000.0
START = 1000.0

per_minutes = st.floats(60.0, 1e7)
ramps = st.sampled_from([0.0, 6.0, 60.0])
seconds = st.floats(0.0, 30.0) | st.floats(0.0, 0.2)


@dataclass
class Sender:
    """Claims as a worker does, and remembers when it did."""

    quota: Quota
    now: float = START
    granted: list[tuple[float, int]] = field(default_factory=list)

    def claim(self, high: float = 0, normal: float = math.inf, devices: int = 1) -> int:
        """Claims what waits and may be claimed; returns for how many requests."""
        both, most_normal = self.quota.room(self.now)
        assert both >= most_normal >= 0
        of_high = int(min(high, both))
        of_normal = int(min(normal, most_normal, both - of_high))
        self.quota.spend(of_high * devices, of_normal * devices, of_high + of_normal)
        requests = (of_high + of_normal) * devices
        if requests:
            self.granted.append((self.now, requests))
        return requests

    def flood(self, until: float, *, high: float = 0, devices: int = 1) -> int:
        """As much as can be had of a backlog without end; returns for how many requests."""
        total = 0
        while self.now < until:
            total += self.claim(high, devices=devices)
            self.now += max(0.001, min(self.quota.opens_in(self.now), until - self.now))
        return total


def most_in(granted: Sequence[tuple[float, int]], window: float) -> int:
    """The most requests in any stretch of so many seconds."""
    most = total = begin = 0
    for at, requests in granted:
        total += requests
        while granted[begin][0] <= at - window:
            total -= granted[begin][1]
            begin += 1
        most = max(most, total)
    return most


@dataclass(frozen=True)
class Step:
    wait: float
    high: int
    normal: int


steps = st.lists(
    st.builds(Step, seconds, st.integers(0, 3000), st.integers(0, 3000)), min_size=1, max_size=40
)


def play(sender: Sender, plan: Iterable[Step]) -> None:
    for step in plan:
        sender.now += step.wait
        sender.claim(step.high, step.normal)


# --- never more than allowed ---------------------------------------------------------------------------------


@given(per_minutes, ramps, steps)
def test_no_minute_sees_more_than_the_quota(per_minute: float, ramp: float, plan: list[Step]) -> None:
    sender = Sender(Quota(per_minute, ramp, START))
    play(sender, plan)
    assert most_in(sender.granted, 60.0) <= per_minute * 1.000001


@dataclass(frozen=True)
class Unused:
    """A step after which a part of what the last claim took turns out not to be needed."""

    step: Step
    later: float
    part: float


unused = st.lists(
    st.builds(Unused, steps.map(lambda some: some[0]), seconds, st.floats(0.0, 1.0)), min_size=1
)


@given(per_minutes, ramps, unused)
def test_what_is_given_back_is_used_once(per_minute: float, ramp: float, plan: list[Unused]) -> None:
    """As pushes that expire before they are sent, or cannot be sent, do it."""
    sender = Sender(Quota(per_minute, ramp, START))
    for each in plan:
        sender.now += each.step.wait
        claimed = sender.claim(each.step.high, each.step.normal)
        high = min(each.step.high, claimed)
        back = int(each.part * high), int(each.part * (claimed - high))
        sender.now += each.later
        before = sender.quota.room(sender.now)
        sender.quota.give_back(*back, sender.now)
        after = sender.quota.room(sender.now)
        assert after[0] >= before[0] - 1  # a row more or less by rounding
        assert after[1] >= before[1]
        if claimed:
            at, _ = sender.granted.pop()
            sender.granted.append((at, claimed - sum(back)))
    assert most_in(sender.granted, 60.0) <= per_minute * 1.000001


@given(per_minutes, st.integers(1, 100))
def test_pushes_that_make_no_request_leave_the_quota_as_it_was(per_minute: float, claims: int) -> None:
    used, untouched = Quota(per_minute, 0.0, START), Quota(per_minute, 0.0, START)
    for _ in range(claims):
        both, normal = used.room(START)
        used.spend(both - normal, normal, both)
        used.give_back(both - normal, normal, START)
    assert used.room(START) == untouched.room(START)


@given(per_minutes, ramps, steps, st.floats(0.01, 300.0))
def test_no_stretch_of_time_sees_more_than_its_part_and_a_burst(
    per_minute: float, ramp: float, plan: list[Step], stretch: float
) -> None:
    sender = Sender(Quota(per_minute, ramp, START))
    play(sender, plan)
    burst = max(2.0, min(per_minute / 10, max(500.0, per_minute / 600)))
    assert most_in(sender.granted, stretch) <= per_minute / 60 * stretch + burst + 0.001


@given(per_minutes, ramps, st.integers(1, 20), st.lists(steps, min_size=1, max_size=4))
def test_workers_together_stay_below_the_quota(
    per_minute: float, ramp: float, workers: int, plans: list[list[Step]]
) -> None:
    assume(per_minute / workers >= 4)  # below that not even one at a time fits
    granted = []
    for plan in itertools.islice(itertools.cycle(plans), workers):
        quota = Quota(per_minute, ramp, START)
        quota.learn(workers, Fraction(), START)
        sender = Sender(quota)
        play(sender, plan)
        granted += sender.granted
    assert most_in(sorted(granted), 60.0) <= per_minute * 1.000001


@given(per_minutes, st.integers(1, 100), steps)
def test_what_devices_cost_beyond_the_room_is_waited_for(
    per_minute: float, devices: int, plan: list[Step]
) -> None:
    sender = Sender(Quota(per_minute, 0.0, START))
    largest = 0
    for step in plan:
        sender.now += step.wait
        largest = max(largest, sender.claim(step.high, step.normal, devices))
    burst = max(2.0, min(per_minute / 10, max(500.0, per_minute / 600)))
    assert most_in(sender.granted, 60.0) <= per_minute + burst + 2 * largest


def test_a_claim_leaves_room_for_the_devices_that_pushes_had_lately() -> None:
    quota = Quota(FCM, 0.0, START)
    rows, _ = quota.room(START)
    assert rows == 1000
    quota.spend(0, 700, 7)
    rows, _ = quota.room(START + 1.0)
    assert rows == 10


# --- a gentle start -------------------------------------------------------------------------------------------


def test_from_nothing_to_the_whole_rate_in_a_minute_and_back_when_idle() -> None:
    sender = Sender(Quota(FCM, 60.0, START))
    whole = 599_000 / 60
    sent = [sender.flood(START + second) for second in range(1, 71)]
    assert sent[0] < 0.25 * whole  # the burst, and a tenth
    assert sent[9] == pytest.approx(0.25 * whole, rel=0.15)
    assert sent[29] == pytest.approx(0.6 * whole, rel=0.1)
    assert all(later >= 0.9 * earlier for earlier, later in itertools.pairwise(sent[1:]))
    assert sent[-1] == pytest.approx(whole, rel=0.02)
    sender.now += 60.0
    assert sender.quota.rate(sender.now) == pytest.approx(0.1 * whole, rel=0.02)


@given(per_minutes, st.floats(6.0, 600.0), st.floats(1.0, 60.0))
def test_the_start_is_never_steeper_than_the_ramp(per_minute: float, ramp: float, after: float) -> None:
    sender = Sender(Quota(per_minute, ramp, START))
    sender.flood(START + after)
    full = per_minute / 60
    burst = max(2.0, min(per_minute / 10, max(500.0, per_minute / 600)))
    allowed = full * (6.0 / ramp + (after + 1.0) / ramp) + 2 * burst / 6.0
    assert sender.quota.rate(sender.now) <= allowed


@pytest.mark.parametrize("per_minute", [60.0, 6000.0, FCM])
def test_a_few_at_once_never_wait(per_minute: float) -> None:
    quota = Quota(per_minute, 60.0, START)
    quota.learn(4, Fraction(), START)
    _, normal = quota.room(START)
    assert normal == max(1, int(0.8 * min(500.0, per_minute / 40)))


def test_without_a_ramp_all_of_the_rate_is_there_at_once() -> None:
    assert Quota(FCM, 0.0, START).rate(START) == 599_000 / 60


# --- high priority first --------------------------------------------------------------------------------------


@given(per_minutes, ramps, steps)
def test_high_is_never_refused_while_normal_is_granted(
    per_minute: float, ramp: float, plan: list[Step]
) -> None:
    sender = Sender(Quota(per_minute, ramp, START))
    for step in plan:
        play(sender, [step])
        both, normal = sender.quota.room(sender.now)
        assert both >= normal


@given(st.floats(600.0, 1e6), st.floats(0.1, 0.9))
def test_high_below_the_rate_never_waits_behind_a_flood(per_minute: float, part: float) -> None:
    sender = Sender(Quota(per_minute, 0.0, START))
    every = 1.0 / (part * sender.quota.rate(START))
    for number in range(1, 100):
        sender.flood(START + number * every)
        both, _ = sender.quota.room(sender.now)
        assert both >= 1
        sender.quota.spend(1, 0, 1)


def test_the_debt_of_normal_pushes_is_not_paid_by_high_ones() -> None:
    quota = Quota(6000.0, 0.0, START)
    quota.room(START)
    quota.spend(0, 40_000, 400)
    assert quota.room(START)[1] == 0
    for second in range(1, 60):
        both, normal = quota.room(START + second)
        assert (both >= 1, normal) == (True, 0)
        quota.spend(50, 0, 50)


# --- lowered ---------------------------------------------------------------------------------------------------


@given(per_minutes, st.integers(0, 30), st.integers(1, 50))
def test_a_lowered_rate_comes_back_evenly_and_not_before_its_time(
    per_minute: float, times: int, workers: int
) -> None:
    quota = Quota(per_minute, 0.0, START)
    quota.learn(workers, Fraction(), START)
    whole = quota.rate(START)
    now = START
    for _ in range(times):
        now += 1.0
        assert quota.refused(Limit.PROJECT, now, now)
    lowest = quota.fraction.at(now)
    assert max(LEAST_FRACTION, 0.5**times) <= lowest <= max(LEAST_FRACTION, 0.5**times) + 0.04 * (times > 1)
    rates = [quota.rate(now + second / 2.0) for second in range(140)]
    assert all(later >= earlier for earlier, later in itertools.pairwise(rates))
    back = quota.fraction.whole_in(now)
    assert back == pytest.approx((1.0 - lowest) * RECOVERY_S)
    assert rates[math.ceil(2 * back) + 1 :] == [whole] * (140 - math.ceil(2 * back) - 1)
    if back > 1.0:
        assert all(rate < whole for rate in rates[: math.floor(2 * back) - 1])


def test_many_refusals_at_once_lower_once() -> None:
    quota = Quota(FCM, 0.0, START)
    assert [quota.refused(Limit.PROJECT, START, START + n / 1000) for n in range(900)] == [True] + 899 * [
        False
    ]
    # These were sent before it was lowered.
    assert not quota.refused(Limit.PROJECT, START - 0.1, START + 1.5)
    assert quota.refused(Limit.PROJECT, START + 1.2, START + 1.5)


def test_what_one_device_or_topic_has_used_up_lowers_nothing() -> None:
    quota = Quota(FCM, 0.0, START)
    assert not any(quota.refused(Limit.TARGET, START + n, START + n) for n in range(1000))
    assert quota.fraction.at(START + 1000) == 1.0


@pytest.mark.parametrize(("share", "least", "most"), [(0.01, 1.0, 1.0), (0.2, 0.1, 0.6), (1.0, 0.01, 0.05)])
def test_a_refusal_that_does_not_say_whose_quota_counts_by_how_many_there_are(
    share: float, least: float, most: float
) -> None:
    quota = Quota(FCM, 0.0, START)
    now, unpaid = START, 0.0
    for _ in range(600):
        now += 0.1
        quota.spend(0, 100, 100)
        unpaid += 100 * share
        while unpaid >= 1.0:
            unpaid -= 1.0
            quota.refused(Limit.UNKNOWN, now, now)
    assert least <= quota.fraction.at(now) <= most


def test_what_another_worker_was_told_counts_as_well() -> None:
    quota = Quota(FCM, 0.0, START)
    quota.learn(2, Fraction(0.25, START - 6.0), START)
    assert quota.rate(START) == pytest.approx(0.35 * 599_000 / 120, rel=0.01)
    # A request from before that says nothing new.
    assert not quota.refused(Limit.PROJECT, START - 0.5, START + 2.0)
    quota.learn(2, Fraction(1.0, 0.0), START + 3.0)
    assert quota.fraction.at(START + 3.0) == pytest.approx(0.4)


def test_a_worker_that_hears_the_same_again_and_again_goes_on_learning_from_its_own_answers() -> None:
    quota = Quota(FCM, 0.0, START)
    part = Fraction(0.5, START)
    for n in range(50):
        quota.learn(1, part, START + n / 10)
    assert quota.refused(Limit.PROJECT, START + 4.8, START + 4.95)


# --- when again ------------------------------------------------------------------------------------------------


@given(
    per_minutes,
    ramps,
    steps,
    st.integers(1, 100),
    st.integers(1, 100),
    st.lists(st.floats(0.1, 5.0), max_size=8),
)
def test_it_always_opens_again_when_it_said_it_would(
    per_minute: float, ramp: float, plan: list[Step], workers: int, devices: int, refusals: list[float]
) -> None:
    quota = Quota(per_minute, ramp, START)
    quota.learn(workers, Fraction(), START)
    sender = Sender(quota)
    play(sender, plan)
    sender.claim(normal=5, devices=devices)
    for wait in refusals:
        sender.now += wait
        quota.refused(Limit.PROJECT, sender.now, sender.now)
    looks, began = 0, sender.now
    while not quota.room(sender.now)[1]:
        wait = quota.opens_in(sender.now)
        assert 0.0 < wait <= 1.0
        sender.now += wait
        looks += 1
        assert looks <= 10 + 2 * (sender.now - began)
        assert sender.now - began < 400_000
    assert quota.opens_in(sender.now) == 0.0


def test_it_says_when_it_opens_for_each_lane() -> None:
    quota = Quota(30_000.0, 0.0, START)
    quota.room(START)
    quota.spend(100, 400, 500)
    wait = quota.opens_in(START)
    assert quota.room(START + 0.9 * wait) == (0, 0)
    now = START + 1.1 * wait
    assert quota.room(now) == (1, 0)
    wait = quota.opens_in(
        now
    )  # until the part of the high ones is full, and that of the others worth a claim
    assert quota.room(now + 0.9 * wait)[0] > 0
    assert quota.room(now + 0.99 * wait)[1] == 0
    assert quota.room(now + 1.01 * wait)[1] > 0
