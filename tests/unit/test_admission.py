"""How much to claim, or how long to wait."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.limits.admission import Admission, Claim, Load, Wait
from listener.limits.claim_budget import ClaimBudget, reserved_for_high

MOST, BATCH = 1000, 500


@dataclass
class Health:
    """FCM may be sent ``before`` pushes until ``at``, and any number from then on."""

    before: int = MOST
    at: float = 0.0

    def limit(self, now: float, in_flight: int, most: int) -> int:
        return min(most, self.before) if now < self.at else most

    def changes_in(self, now: float, in_flight: int) -> float | None:
        return self.at - now if now < self.at else None


@dataclass
class Quota:
    """There is room for ``before`` pushes, of either priority and of normal priority, until ``at``."""

    before: tuple[int, int] = (0, 0)
    at: float = 0.0

    def room(self, now: float) -> tuple[int, int]:
        return self.before if now < self.at else (MOST, MOST)

    def opens_in(self, now: float) -> float:
        return max(0.0, self.at - now)


def admission(health: Health | None = None, quota: Quota | None = None) -> Admission:
    return Admission(health or Health(), quota or Quota(), max_in_flight=MOST, batch=BATCH)


@st.composite
def loads(draw: st.DrawFn) -> Load:
    held = draw(st.integers(0, 3 * MOST))
    sending = draw(st.integers(0, min(held, MOST)))
    return Load(held, sending, draw(st.integers(0, held - sending)), draw(st.booleans()))


times = st.floats(0.0, 5.0)
healths = st.builds(Health, st.integers(0, MOST), times)
quotas = st.builds(
    Quota, st.tuples(st.integers(0, MOST), st.integers(0, MOST)).map(lambda two: (max(two), min(two))), times
)


def test_an_idle_worker_claims_a_batch_of_either_priority() -> None:
    decision = admission().decide(10.0, Load(0, 0, 0))
    assert isinstance(decision, Claim)
    assert (decision.budget.total, decision.budget.normal) == (BATCH, BATCH)


@given(loads(), healths, quotas, times)
def test_a_claim_stays_within_every_limit(load: Load, health: Health, quota: Quota, now: float) -> None:
    decision = admission(health, quota).decide(now, load)
    if isinstance(decision, Wait):
        return
    budget = decision.budget
    assert load.can_settle
    assert 0 <= budget.normal <= budget.total <= BATCH
    assert budget.total > 0
    assert budget.total <= quota.room(now)[0]
    assert budget.normal <= quota.room(now)[1]
    most = health.limit(now, load.held, MOST)
    taken = load.held - load.set_aside if most < MOST else load.sending
    assert taken + budget.total <= most
    assert taken + budget.normal <= max(taken, most - reserved_for_high(most))
    assert load.held + budget.total <= 2 * MOST or load.set_aside or most < MOST


@given(loads(), healths, quotas, times)
def test_a_wait_never_misses_the_moment_from_which_time_alone_allows_a_claim(
    load: Load, health: Health, quota: Quota, now: float
) -> None:
    """A worker that follows the waits claims in the end, or waits for an event because no later time would do."""
    decides = admission(health, quota)
    for _ in range(200):
        decision = decides.decide(now, load)
        if isinstance(decision, Claim):
            return
        if decision.seconds is None:
            for later in (0.01, 0.1, 10.0, 100.0):
                assert isinstance(admission(health, quota).decide(now + later, load), Wait)
            return
        assert decision.seconds > 0.0
        now += decision.seconds + 1e-6
    raise AssertionError("it waits for ever")


@given(healths, quotas, times)
def test_nothing_is_claimed_while_results_cannot_be_written(health: Health, quota: Quota, now: float) -> None:
    assert admission(health, quota).decide(now, Load(0, 0, 0, can_settle=False)) == Wait(None)


def test_a_few_free_places_are_claimed_after_a_short_wait_for_more() -> None:
    decides, load = admission(), Load(800, 800, 0)
    decides.claimed(ClaimBudget(1, 1, 1), 1, 10.0)
    first = decides.decide(10.0, load)
    assert isinstance(first, Wait)
    assert first.seconds is not None
    urgent = decides.decide(10.021, load)
    assert isinstance(urgent, Claim)
    assert urgent.budget.normal == 0
    later = decides.decide(10.06, load)
    assert isinstance(later, Claim)
    assert later.budget.normal == 1000 - reserved_for_high(1000) - 800


def test_urgent_pushes_are_looked_for_ever_less_often_until_something_is_notified_or_found() -> None:
    decides, load, now, waits = admission(), Load(900, 900, 0), 10.0, []
    for _ in range(4):
        decides.claimed(ClaimBudget(100, 0, 0), 0, now)
        decision = decides.decide(now, load)
        assert isinstance(decision, Wait)
        assert decision.seconds is not None
        waits.append(decision.seconds)
        now += decision.seconds + 1e-6
        assert isinstance(decides.decide(now, load), Claim)
    assert waits == pytest.approx([0.04, 0.08, 0.08, 0.08])
    decides.notified()
    decides.claimed(ClaimBudget(100, 0, 0), 3, now)
    assert decides.decide(now, load) == Wait(0.02)


def test_a_probe_that_is_due_while_the_quota_is_used_up_waits_for_the_quota() -> None:
    class Probing(Health):
        def limit(self, now: float, in_flight: int, most: int) -> int:
            return 1

        def changes_in(self, now: float, in_flight: int) -> float | None:
            return 0.0

    assert admission(Probing(), Quota(at=15.0)).decide(10.0, Load(0, 0, 0)) == Wait(5.0)


def test_results_that_wait_for_locked_rows_take_no_place_but_memory_is_bounded() -> None:
    assert isinstance(admission().decide(10.0, Load(MOST, 0, MOST)), Claim)
    assert isinstance(admission().decide(10.0, Load(2 * MOST, 0, 2 * MOST)), Wait)
