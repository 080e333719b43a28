"""What a worker holds, and what a claim brings once more."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

from listener.metrics.own import Metrics
from listener.push import Decision, Push, Settlement, Status
from listener.sending.held import HeldRows
from tests.support.pushes import push


def rows() -> HeldRows:
    return HeldRows(Metrics(), lease=60.0)


def settled(row: Push) -> Settlement:
    return Settlement(row.id, row.attempt, Decision(Status.SENT))


def test_a_claim_that_brings_what_is_under_way_brings_nothing_new() -> None:
    held, first, second = rows(), replace(push(), id=uuid4()), replace(push(), id=uuid4())
    held.claim_begins()
    assert held.add([first], 1.0) == [first]
    held.claim_begins()
    assert held.add([first, second], 2.0) == [second]
    assert held.ids == [first.id, second.id]


def test_what_is_settled_while_a_claim_is_under_way_is_not_new_to_it() -> None:
    held, one = rows(), push()
    held.claim_begins()
    held.add([one], 1.0)
    held.claim_begins()
    held.remove([settled(one)])
    assert held.add([one], 2.0) == []
    assert len(held) == 0


def test_what_was_settled_before_a_claim_is_new_to_it() -> None:
    held, one = rows(), push()
    held.claim_begins()
    held.add([one], 1.0)
    held.remove([settled(one)])
    held.claim_begins()
    assert held.add([one], 2.0) == [one]


def test_the_next_attempt_is_new() -> None:
    held, one = rows(), push()
    held.claim_begins()
    held.add([one], 1.0)
    held.claim_begins()
    later = replace(one, attempt=one.attempt + 1)
    assert held.add([later], 2.0) == [later]
