"""What is written in place of a result that the database refuses."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from listener.push import Decision, LogLine, Settlement, Status
from listener.sending.unwritten import is_accepted, variants

DECISIONS = st.one_of(
    st.builds(Decision, st.sampled_from([Status.PENDING, Status.FAILED]), st.floats(0.0, 100.0)),
    st.builds(Decision, st.sampled_from([Status.SENT, Status.DEAD, Status.EXPIRED]), st.none()),
)
LINES = st.lists(
    st.builds(
        LogLine, st.just("token"), st.sampled_from(["sent", "failed", "unknown"]), st.just({"attempt": 1})
    )
)
SETTLEMENTS = st.builds(Settlement, st.just(UUID(int=1)), st.just(1), DECISIONS, LINES)


def test_a_push_that_was_sent_loses_its_log_rows_and_nothing_else() -> None:
    line = LogLine("t", "sent", {"attempt": 1})
    settlement = Settlement(UUID(int=1), 1, Decision(Status.SENT), [line], [("t", "X")])
    (only,) = variants(settlement, "23502")
    assert (only.decision, only.logs, only.dead_tokens) == (settlement.decision, [], [("t", "X")])


def test_a_row_that_cannot_be_pending_becomes_failed_and_then_dead_with_the_reason() -> None:
    settlement = Settlement(UUID(int=1), 1, Decision(Status.PENDING, 5.0))
    failed, dead = variants(settlement, "23505")
    assert failed.decision == Decision(Status.FAILED, 5.0)
    assert (dead.decision.status, dead.decision.code) == (Status.DEAD, "NOT_WRITTEN")
    assert dead.decision.reason == "the result (pending) could not be written: SQLSTATE 23505"


def test_no_push_is_given_up_because_the_database_is_slow() -> None:
    settlement = Settlement(UUID(int=1), 1, Decision(Status.PENDING, 5.0))
    for code in ("57014", "TimeoutError"):
        assert [variant.decision for variant in variants(settlement, code)] == [Decision(Status.FAILED, 5.0)]


def test_a_push_of_which_the_log_does_not_hold_who_accepted_it_is_over() -> None:
    line = LogLine("t", "sent", {"attempt": 1})
    settlement = Settlement(UUID(int=1), 1, Decision(Status.FAILED, 5.0, reason="away"), [line], [("u", "X")])
    (only,) = variants(settlement, "UNLOGGED")
    assert (only.decision.status, only.decision.delay, only.decision.code) == (
        Status.SENT,
        None,
        "NOT_WRITTEN",
    )
    assert (only.logs, only.dead_tokens) == ([], [("u", "X")])


@given(SETTLEMENTS)
def test_no_device_gets_an_accepted_push_twice(settlement: Settlement) -> None:
    """A row that waits needs the log rows that tell which devices have accepted; a dead one may be requeued."""
    for code in ("P0001", "57014", "UNLOGGED"):
        _check_variants(settlement, code)


def _check_variants(settlement: Settlement, code: str) -> None:
    for variant in variants(settlement, code):
        if is_accepted(settlement):
            assert variant.decision.status is not Status.DEAD or settlement.decision.status is Status.DEAD
            assert variant.logs or variant.decision.delay is None


@given(SETTLEMENTS)
def test_the_true_status_comes_first(settlement: Settlement) -> None:
    kinds = [
        variant.decision.status is settlement.decision.status for variant in variants(settlement, "P0001")
    ]
    assert kinds == sorted(kinds, reverse=True)
