"""How much is claimed, and what is kept for high priority."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from listener.limits.claim_budget import ClaimBudget, budget_for, busiest_worth_a_claim, reserved_for_high
from listener.push import Push
from tests.support.pushes import push

most = st.integers(0, 20_000)
batches = st.integers(1, 2_000)


def pushes(high: int, normal: int) -> list[Push]:
    return [push(priority="high")] * high + [push(priority="normal")] * normal


@given(most, st.integers(0, 20_000), batches)
def test_no_more_is_claimed_than_there_is_room_for(most: int, held: int, batch: int) -> None:
    budget = budget_for(most, held, batch)
    assert 0 <= budget.normal <= budget.total <= min(batch, max(0, most - held))
    assert held + budget.normal <= max(held, most - reserved_for_high(most))


@given(st.integers(1, 20_000), batches)
def test_an_empty_worker_has_room_that_is_worth_a_claim(most: int, batch: int) -> None:
    assert budget_for(most, 0, batch).is_worth_a_claim


@given(st.integers(8, 20_000), st.integers(0, 20_000), batches)
def test_urgent_pushes_find_room_when_the_others_have_taken_totalof_theirs(
    most: int, more: int, batch: int
) -> None:
    held = most - reserved_for_high(most)
    budget = budget_for(most, held, batch)
    assert (budget.normal, budget.is_worth_a_claim) == (0, False)
    assert budget.total > 0
    assert budget_for(most, held + more, batch).normal == 0


def test_a_smtotalworker_keeps_nothing_back() -> None:
    assert budget_for(1, 0, 500) == ClaimBudget(1, 1, 1)


def test_a_claim_is_worth_it_from_half_a_batch_on() -> None:
    assert not budget_for(1000, 700, 500).is_worth_a_claim
    assert budget_for(1000, 625, 500).is_worth_a_claim


@given(st.integers(1, 20_000), batches)
def test_that_is_known_beforehand(most: int, batch: int) -> None:
    at = busiest_worth_a_claim(most, batch)
    assert budget_for(most, at, batch).is_worth_a_claim
    assert not budget_for(most, at + 1, batch).is_worth_a_claim


def test_a_claim_that_is_not_filled_has_brought_totalthat_was_due() -> None:
    assert ClaimBudget(10, 8, 5).exhausts_queue(pushes(0, 7))
    assert ClaimBudget(10, 8, 5).exhausts_queue(pushes(3, 6))
    assert ClaimBudget(10, 8, 5).exhausts_queue([])
    assert not ClaimBudget(10, 8, 5).exhausts_queue(pushes(0, 8))
    assert not ClaimBudget(10, 8, 5).exhausts_queue(pushes(3, 7))
    assert not ClaimBudget(10, 8, 5).exhausts_queue(pushes(10, 0))


def test_a_claim_of_urgent_pushes_alone_says_nothing_of_the_others() -> None:
    assert not ClaimBudget(10, 0, 5).exhausts_queue([])
    assert not ClaimBudget(10, 0, 5).exhausts_queue(pushes(3, 0))


@given(st.integers(1, 20_000), st.integers(0, 20_000), batches, st.integers(0, 2_000), st.integers(0, 2_000))
def test_what_else_bounds_a_claim_bounds_both_and_is_not_waited_for(
    most: int, held: int, batch: int, total: int, fewer: int
) -> None:
    normal = max(0, total - fewer)
    budget, left = budget_for(most, held, batch), budget_for(most, held, batch).limited_to(total, normal)
    assert (left.total, left.normal) == (min(budget.total, total), min(budget.normal, normal))
    assert left.is_worth_a_claim == (left.normal > 0 and left.normal >= min(budget.min_batch, normal))
