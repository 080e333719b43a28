"""The breaker that closes when FCM refuses our configuration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.fcm.outcome import Disposition, Outcome
from listener.limits.circuit_breaker import CircuitBreaker

REFUSED = Outcome(Disposition.PAUSE, "PERMISSION_DENIED", "may not send", 403, uses_try=False)
NO_TOKEN = Outcome(Disposition.PAUSE, "invalid_grant", "the key is not valid", uses_try=False)
ACCEPTED = Outcome(Disposition.ACCEPTED, "OK", "accepted", 200)
NO_ANSWER = Outcome(Disposition.RETRY, "TIMEOUT", "no answer", ambiguous=True)

ANSWERS = [
    ACCEPTED,
    Outcome(Disposition.DROP_TARGET, "UNREGISTERED", "gone", 404),
    Outcome(Disposition.DROP_MESSAGE, "INVALID_ARGUMENT", "bad", 400),
    Outcome(Disposition.PAUSE_PLATFORM, "THIRD_PARTY_AUTH_ERROR", "APNs", 401),
    Outcome(Disposition.RETRY, "UNAVAILABLE", "trouble", 503),
]


def closed(at: float = 100.0) -> CircuitBreaker:
    breaker = CircuitBreaker()
    assert breaker.note(REFUSED, at, at)
    return breaker


def test_open_at_first_and_no_answer_but_a_refusal_closes_it() -> None:
    breaker = CircuitBreaker()
    for outcome in [*ANSWERS, NO_ANSWER]:
        assert not breaker.note(outcome, 1.0, 2.0)
    assert (breaker.reason, breaker.limit(3.0, 500), breaker.probes_in(3.0)) == (None, None, None)


@pytest.mark.parametrize("refusal", [REFUSED, NO_TOKEN])
def test_a_refusal_closes_it_for_half_a_minute(refusal: Outcome) -> None:
    breaker = CircuitBreaker()
    assert breaker.note(refusal, 99.0, 100.0)
    assert breaker.reason == refusal.reason
    assert breaker.probes_in(100.0) == 30.0
    assert breaker.limit(129.9, 0) == 0
    assert (breaker.limit(130.0, 0), breaker.probes_in(140.0)) == (1, 0.0)


def test_one_probe_at_a_time() -> None:
    breaker = closed()
    assert (breaker.limit(131.0, 0), breaker.limit(131.0, 1)) == (1, 0)


def test_each_refused_probe_doubles_the_wait_up_to_five_minutes() -> None:
    breaker, now, waits = closed(), 100.0, []
    for _ in range(6):
        wait = breaker.probes_in(now)
        assert wait is not None
        waits.append(wait)
        now += wait
        assert breaker.limit(now, 0) == 1
        assert not breaker.note(REFUSED, now, now + 1.0)
        now += 1.0
    assert waits == [30.0, 60.0, 120.0, 240.0, 300.0, 300.0]


def test_a_probe_without_an_answer_opens_nothing_and_is_not_repeated_at_once() -> None:
    breaker = closed()
    assert not breaker.note(NO_ANSWER, 130.0, 145.0)
    assert breaker.reason == REFUSED.reason
    assert (breaker.limit(145.0, 0), breaker.probes_in(145.0)) == (0, 60.0)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda each: str(each.disposition))
def test_any_other_answer_of_fcm_to_a_probe_opens_it(answer: Outcome) -> None:
    breaker = closed()
    assert breaker.note(answer, 130.0, 131.0)
    assert (breaker.reason, breaker.limit(131.0, 0), breaker.probes_in(131.0)) == (None, None, None)


def test_after_an_opening_it_starts_again_with_half_a_minute() -> None:
    breaker = closed()
    breaker.note(REFUSED, 130.0, 131.0)
    breaker.note(ACCEPTED, 200.0, 201.0)
    assert breaker.note(REFUSED, 202.0, 203.0)
    assert breaker.probes_in(203.0) == 30.0


@given(
    st.lists(st.tuples(st.sampled_from([REFUSED, NO_TOKEN, NO_ANSWER, *ANSWERS]), st.floats(0, 99.9))),
    st.floats(100.0, 1000.0),
)
def test_answers_to_what_was_asked_before_it_closed_change_nothing(
    stale: list[tuple[Outcome, float]], now: float
) -> None:
    breaker = closed(at=100.0)
    for outcome, asked in stale:
        assert not breaker.note(outcome, asked, now)
    assert (breaker.reason, breaker.probes_in(now)) == (REFUSED.reason, max(0.0, 130.0 - now))


def test_the_other_devices_of_a_refused_probe_change_nothing() -> None:
    breaker = closed()
    assert not breaker.note(REFUSED, 130.0, 131.0)
    for answer in (REFUSED, ACCEPTED):
        assert not breaker.note(answer, 130.1, 132.0)
    assert breaker.probes_in(131.0) == 60.0
