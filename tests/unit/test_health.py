"""What the answers say of FCM, and how much is sent therefore."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.fcm.fault import AuthFault
from listener.fcm.outcome import Kind, Limit, Outcome, from_auth_fault
from listener.health import FcmHealth, Pause
from listener.push import Target, TargetKind
from listener.ramp import Ramp, after_losses

PHONE = Target(TargetKind.TOKEN, "phone")
IPHONE = Target(TargetKind.TOKEN, "iphone", "ios")
ANDROID = Target(TargetKind.TOKEN, "android", "android")
TOPIC = Target(TargetKind.TOPIC, "news")
MOST = 1000

ACCEPTED = Outcome(Kind.ACCEPTED, "OK", "accepted by FCM", 200)
DEAD = Outcome(Kind.DROP_TARGET, "UNREGISTERED", "gone", 404)
BAD = Outcome(Kind.DROP_MESSAGE, "INVALID_ARGUMENT", "bad", 400)
QUOTA = Outcome(Kind.RETRY, "QUOTA_EXCEEDED", "used up", 429, delay=60.0, limit=Limit.PROJECT)
REFUSED = Outcome(Kind.PAUSE, "PERMISSION_DENIED", "may not send", 403, uses_attempt=False)
NO_KEY = Outcome(Kind.PAUSE, "OAUTH_INVALID_GRANT", "the key is not valid", uses_attempt=False)
UNAVAILABLE = Outcome(Kind.RETRY, "UNAVAILABLE", "in trouble", 503, ambiguous=True)
TIMEOUT = Outcome(Kind.RETRY, "TIMEOUT", "no answer", ambiguous=True)
NO_TOKEN = from_auth_fault(AuthFault("OAUTH_TIMEOUT", "the token endpoint does not answer", permanent=False))
NO_APNS = Outcome(Kind.PAUSE_PLATFORM, "THIRD_PARTY_AUTH_ERROR", "APNs", 401, uses_attempt=False)

ANSWERS = [ACCEPTED, DEAD, BAD, QUOTA, NO_APNS]
FAILURES = [UNAVAILABLE, TIMEOUT, NO_TOKEN]
ALL = [*ANSWERS, *FAILURES, REFUSED, NO_KEY]


def health(*, guard: bool = True) -> FcmHealth:
    return FcmHealth(Ramp(MOST, 1.0, -1000.0), token_loss_guard=guard)


def code(outcome: Outcome) -> str:
    return outcome.code


def away(at: float = 100.0) -> FcmHealth:
    """FCM has been silent twenty times."""
    seen = health()
    for _ in range(20):
        seen.judge(PHONE, TIMEOUT, at - 1.0, at)
    assert seen.reason == "FCM is away: no answer"
    return seen


# --- the kind of a pause -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "times", "kind"),
    [
        (REFUSED, 1, Pause.REFUSED),
        (NO_KEY, 1, Pause.NO_ACCESS_TOKEN),
        (NO_TOKEN, 20, Pause.NO_ACCESS_TOKEN),
        (UNAVAILABLE, 20, Pause.AWAY),
        (TIMEOUT, 20, Pause.AWAY),
        (DEAD, 20, Pause.TOKEN_LOSS),
        (QUOTA, 20, None),
        (NO_APNS, 20, None),
    ],
)
def test_a_pause_has_a_kind(outcome: Outcome, times: int, kind: Pause | None) -> None:
    seen = health()
    for _ in range(times):
        seen.judge(PHONE, outcome, 99.0, 100.0)
    assert seen.pause_kind is kind
    assert (seen.reason is None) is (kind is None)
    seen.judge(PHONE, ACCEPTED, 200.0, 201.0)
    assert (seen.pause_kind, seen.reason) == (None, None)


def test_a_kind_says_nothing_that_fcm_has_said() -> None:
    seen = health()
    seen.judge(PHONE, replace(REFUSED, reason="S3cr3t"), 99.0, 100.0)
    assert "S3cr3t" in str(seen.reason)
    assert "S3cr3t" not in str(seen.pause_kind)


# --- away ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", FAILURES, ids=code)
def test_twenty_failures_in_a_row_mean_that_fcm_is_away(failure: Outcome) -> None:
    seen = health()
    for n in range(19):
        assert seen.judge(PHONE, failure, n, n + 0.5) is failure
    assert (seen.reason, seen.limit(19.0, 500, MOST)) == (None, MOST)
    last = seen.judge(PHONE, failure, 19.0, 19.5)
    assert seen.reason == f"FCM is away: {failure.reason}"
    assert (last.kind, last.uses_attempt) == (Kind.RETRY, False)
    assert seen.limit(19.5, 0, MOST) == 0


@pytest.mark.parametrize("answer", [*ANSWERS, REFUSED], ids=code)
def test_any_answer_between_them_begins_the_count_anew(answer: Outcome) -> None:
    seen = health()
    for n in range(19):
        seen.judge(PHONE, UNAVAILABLE, n, n + 0.5)
    seen.judge(TOPIC, answer, 19.0, 19.5)
    for n in range(20, 39):
        seen.judge(PHONE, UNAVAILABLE, n, n + 0.5)
    assert not (seen.reason or "").startswith("FCM is away")


def test_what_was_under_way_when_it_went_uses_no_try_and_makes_the_pause_no_longer() -> None:
    seen = away(100.0)
    for n in range(500):
        assert not seen.judge(PHONE, TIMEOUT, 99.0, 100.0 + n / 1000).uses_attempt
    assert seen.changes_in(100.5, 0) == pytest.approx(1.5)


def test_it_is_asked_after_two_seconds_and_then_every_four() -> None:
    seen, now, waits = away(100.0), 100.0, []
    for _ in range(5):
        wait = seen.changes_in(now, 0)
        assert wait is not None
        waits.append(wait)
        now += wait
        assert (seen.limit(now, 0, MOST), seen.limit(now, 1, MOST)) == (1, 0)
        assert not seen.judge(PHONE, TIMEOUT, now, now + 15.0).uses_attempt
        now += 15.0
    assert waits == [2.0, 4.0, 4.0, 4.0, 4.0]


@pytest.mark.parametrize("answer", ANSWERS, ids=code)
def test_an_answer_to_the_probe_ends_it_and_sending_begins_gently(answer: Outcome) -> None:
    seen = away(100.0)
    seen.judge(PHONE, answer, 102.0, 102.1)
    assert seen.reason is None
    assert [seen.limit(102.1 + n, 0, MOST) for n in range(4)] == [8, 16, 32, 64]
    assert seen.limit(112.0, 0, MOST) == MOST


def test_an_answer_that_was_asked_for_before_it_went_does_not_end_it() -> None:
    seen = away(100.0)
    seen.judge(PHONE, ACCEPTED, 99.0, 101.0)
    assert seen.reason is not None


def test_a_question_that_is_not_answered_changes_nothing() -> None:
    seen = away(100.0)
    seen.answered(TIMEOUT, 100.0, 101.0)
    seen.answered(UNAVAILABLE, 100.0, 101.0)
    assert (seen.reason, seen.changes_in(101.0, 0)) == ("FCM is away: no answer", 1.0)
    assert not seen.in_doubt


def test_a_question_that_was_asked_before_it_went_says_nothing() -> None:
    seen = away(100.0)
    seen.answered(ACCEPTED, 99.0, 101.0)
    assert seen.reason is not None


# --- in doubt: it answers a question, and no push -----------------------------------------------------------


def in_doubt() -> FcmHealth:
    seen = away(100.0)
    seen.answered(ACCEPTED, 100.0, 100.1)
    return seen


def test_when_a_question_is_answered_a_few_go_on_being_tried() -> None:
    seen = in_doubt()
    assert (seen.reason, seen.in_doubt) == (None, True)
    assert [seen.limit(now, 0, MOST) for now in (100.1, 110.0, 1000.0)] == [8, 8, 8]
    assert seen.limit(1000.0, 0, 3) == 3


def test_their_failures_use_no_try_and_do_not_stop_them() -> None:
    seen = in_doubt()
    for n in range(1000):
        assert not seen.judge(PHONE, UNAVAILABLE, 100.2, 101.0 + n / 100).uses_attempt
    assert (seen.reason, seen.limit(111.0, 0, MOST)) == (None, 8)


def test_unless_no_question_is_answered_any_more() -> None:
    seen = in_doubt()
    seen.judge(PHONE, UNAVAILABLE, 130.0, 130.2)
    assert (seen.reason, seen.limit(130.2, 0, MOST)) == ("FCM is away: in trouble", 0)
    seen.answered(ACCEPTED, 130.2, 130.3)
    assert seen.in_doubt


def test_the_first_answer_to_a_push_ends_the_doubt() -> None:
    seen = in_doubt()
    seen.judge(PHONE, ACCEPTED, 110.0, 111.0)
    assert not seen.in_doubt
    assert [seen.limit(111.0 + n, 0, MOST) for n in range(3)] == [8, 16, 32]
    assert seen.judge(PHONE, UNAVAILABLE, 111.0, 112.0).uses_attempt


# --- away, again ---------------------------------------------------------------------------------------------


def test_an_end_does_not_widen_a_start_that_is_gentler_still() -> None:
    """Workers have died lately: what killed them may still be there."""
    seen = FcmHealth(after_losses(5, MOST, 100.0))
    for _ in range(20):
        seen.judge(PHONE, TIMEOUT, 99.0, 100.0)
    seen.judge(PHONE, ACCEPTED, 102.0, 102.1)
    assert (seen.reason, seen.limit(102.1, 0, MOST)) == (None, 1)


def test_it_counts_as_away_until_it_has_answered_and_when_it_has_not_for_a_minute() -> None:
    seen = health()
    assert seen.is_away(0.0)
    seen.judge(PHONE, ACCEPTED, 0.0, 1.0)
    assert not seen.is_away(61.0)
    assert seen.is_away(61.1)


def test_a_refusal_is_an_answer_all_the_same() -> None:
    seen = health()
    seen.judge(PHONE, REFUSED, 0.0, 1.0)
    assert not seen.is_away(2.0)


def test_who_refuses_us_after_having_been_away_is_asked_as_rarely_as_one_who_refuses() -> None:
    seen = away(100.0)
    seen.judge(PHONE, REFUSED, 102.0, 102.1)
    assert (seen.reason, seen.changes_in(102.1, 0)) == ("may not send", 30.0)
    seen.judge(PHONE, ACCEPTED, 140.0, 140.1)
    assert seen.reason is None


def test_while_there_are_no_access_tokens_pushes_wait_in_the_queue() -> None:
    """Not each of them once every few seconds, with a row in the log for each time."""
    seen = health()
    for second in range(100):
        assert not seen.judge(PHONE, NO_TOKEN, second, second).uses_attempt
    assert seen.reason is not None
    assert seen.limit(100.0, 1, MOST) == 0
    seen.judge(PHONE, ACCEPTED, 110.0, 110.1)
    assert seen.reason is None


# --- refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [REFUSED, NO_KEY], ids=code)
def test_one_refusal_stops_everything_but_a_probe(refusal: Outcome) -> None:
    seen = health()
    assert not seen.judge(PHONE, refusal, 99.0, 100.0).uses_attempt
    assert (seen.reason, seen.limit(129.9, 0, MOST), seen.limit(130.0, 0, MOST)) == (refusal.reason, 0, 1)
    assert (seen.changes_in(100.0, 0), seen.changes_in(100.0, 3)) == (30.0, None)
    seen.judge(PHONE, ACCEPTED, 130.0, 130.1)
    assert (seen.reason, seen.limit(130.1, 0, MOST)) == (None, 8)


# --- the guard against the loss of tokens ------------------------------------------------------------------


def test_when_every_token_is_called_dead_it_pauses() -> None:
    seen = health()
    judged = [seen.judge(PHONE, DEAD, n, n + 0.1) for n in range(30)]
    assert [outcome.kind for outcome in judged] == [Kind.DROP_TARGET] * 19 + [Kind.PAUSE] * 11
    assert (seen.reason or "").startswith("FCM calls 30 of the last 30 tokens dead")
    assert seen.limit(29.1, 0, MOST) == 0


def test_a_token_that_is_alive_ends_that_pause() -> None:
    seen = health()
    for n in range(20):
        seen.judge(PHONE, DEAD, n, n + 0.1)
    seen.judge(PHONE, ACCEPTED, 50.0, 50.1)
    assert seen.reason is None


def test_without_the_guard_every_dead_token_is_believed() -> None:
    seen = health(guard=False)
    for n in range(500):
        assert seen.judge(PHONE, DEAD, n, n + 0.1) is DEAD
    assert seen.reason is None


def test_what_is_said_of_topics_says_nothing_of_tokens() -> None:
    seen = health()
    for n in range(100):
        assert seen.judge(TOPIC, DEAD, n, n + 0.1) is DEAD


# --- a platform refused ------------------------------------------------------------------------------------


def test_a_platform_that_is_refused_waits_and_the_others_go_on() -> None:
    seen = health()
    refused = seen.judge(IPHONE, NO_APNS, 99.0, 100.0)
    assert (refused.kind, refused.delay, refused.uses_attempt) == (Kind.PAUSE_PLATFORM, 60.0, False)
    assert (seen.platform_wait("ios", 110.0), seen.platform_wait("ios", 160.0)) == (50.0, 0.0)
    assert [seen.platform_wait(name, 110.0) for name in ("android", "web", None)] == [0.0, 0.0, 0.0]
    assert (seen.reason, seen.limit(110.0, 0, MOST)) == (None, MOST)


def test_what_was_under_way_then_waits_as_long_and_makes_it_no_longer() -> None:
    seen = health()
    seen.judge(IPHONE, NO_APNS, 99.0, 100.0)
    assert seen.judge(IPHONE, NO_APNS, 99.0, 110.0).delay == 50.0
    assert seen.judge(IPHONE, NO_APNS, 99.0, 500.0).delay == 0.0


def test_each_time_it_is_refused_again_it_waits_twice_as_long_up_to_ten_minutes() -> None:
    seen, now, waits = health(), 100.0, []
    for _ in range(6):
        seen.judge(IPHONE, NO_APNS, now, now + 1.0)
        now += 1.0
        waits.append(seen.platform_wait("ios", now))
        now += waits[-1]
    assert waits == [60.0, 120.0, 240.0, 480.0, 600.0, 600.0]


def test_one_accepted_push_is_enough_to_go_on() -> None:
    seen = health()
    seen.judge(IPHONE, NO_APNS, 99.0, 100.0)
    seen.judge(IPHONE, ACCEPTED, 160.0, 160.1)
    assert seen.platform_wait("ios", 160.1) == 0.0
    seen.judge(IPHONE, NO_APNS, 161.0, 162.0)
    assert seen.platform_wait("ios", 162.0) == 60.0


@pytest.mark.parametrize("other", [DEAD, BAD, QUOTA, UNAVAILABLE, REFUSED], ids=code)
def test_answers_that_say_nothing_of_its_credentials_do_not_end_its_wait(other: Outcome) -> None:
    """FCM knows that a token is dead before it asks Apple, so dead ones are no sign that the key has been mended."""
    seen = health()
    seen.judge(IPHONE, NO_APNS, 99.0, 100.0)
    seen.judge(IPHONE, other, 101.0, 102.0)
    assert seen.platform_wait("ios", 102.0) == 58.0


def test_neither_does_one_that_was_accepted_before_or_on_another_platform() -> None:
    seen = health()
    seen.judge(IPHONE, NO_APNS, 99.0, 100.0)
    seen.judge(IPHONE, ACCEPTED, 99.5, 101.0)
    seen.judge(ANDROID, ACCEPTED, 101.0, 101.1)
    seen.judge(PHONE, ACCEPTED, 101.0, 101.1)
    assert seen.platform_wait("ios", 102.0) == 58.0


def test_a_push_of_unknown_platform_waits_alone() -> None:
    seen = health()
    assert seen.judge(PHONE, NO_APNS, 99.0, 100.0).delay == 60.0
    assert [seen.platform_wait(name, 100.0) for name in ("ios", None)] == [0.0, 0.0]


# --- whatever happens ----------------------------------------------------------------------------------------

events = st.tuples(
    st.sampled_from([PHONE, IPHONE, ANDROID, TOPIC]),
    st.sampled_from(ALL),
    st.floats(0.0, 30.0),  # since the answer before it
    st.floats(0.0, 60.0),  # how long it took
)
bursts = st.lists(st.tuples(events, st.integers(1, 40)), max_size=8)


def told(burst: list[tuple[tuple[Target, Outcome, float, float], int]]) -> Iterator[tuple[FcmHealth, float]]:
    """The health after each answer of a history in which one answer often comes many times."""
    seen, now = FcmHealth(Ramp(1, 5.0, 1000.0)), 1000.0
    yield seen, now
    for (target, outcome, passed, took), times in burst:
        for _ in range(times):
            now += passed
            seen.judge(target, outcome, now - took, now)
            yield seen, now


@given(bursts)
def test_with_nothing_in_flight_something_may_be_sent_at_a_time_that_is_known(
    burst: list[tuple[tuple[Target, Outcome, float, float], int]],
) -> None:
    for seen, now in told(burst):
        wait = seen.changes_in(now, 0)
        assert wait is not None
        assert 0.0 <= wait <= 300.001
        assert seen.limit(now + wait + 1e-6, 0, MOST) >= 1
        assert all(0.0 <= seen.platform_wait(name, now) <= 600.001 for name in ("ios", "android"))


@given(bursts, st.integers(0, 2000))
def test_the_limit_is_never_above_the_most_and_0_only_with_a_reason(
    burst: list[tuple[tuple[Target, Outcome, float, float], int]], in_flight: int
) -> None:
    for seen, now in told(burst):
        limit = seen.limit(now, in_flight, MOST)
        assert 0 <= limit <= MOST
        assert (limit > 0) or seen.reason
        wait = seen.changes_in(now, in_flight)
        if seen.reason is None:  # the ramp goes on by itself
            assert wait is not None
            assert wait > 0.0
        elif in_flight:
            assert wait is None


@given(bursts)
def test_once_fcm_accepts_everything_everything_is_sent_again(
    burst: list[tuple[tuple[Target, Outcome, float, float], int]],
) -> None:
    seen, now = list(told(burst))[-1]
    for _ in range(40):
        wait = seen.changes_in(now, 0)
        assert wait is not None
        now = max(now + wait, now + max(seen.platform_wait("ios", now), 0.1)) + 1e-6
        for target in (PHONE, IPHONE):
            seen.judge(target, ACCEPTED, now, now + 0.1)
        now += 0.1
    assert (seen.reason, seen.limit(now + 60.0, 0, MOST), seen.platform_wait("ios", now)) == (None, MOST, 0.0)


@given(bursts)
def test_no_try_is_used_while_sending_is_paused(
    burst: list[tuple[tuple[Target, Outcome, float, float], int]],
) -> None:
    for seen, now in told(burst):
        if (seen.reason or "").startswith("FCM is away"):
            assert not seen.judge(PHONE, TIMEOUT, now, now + 1.0).uses_attempt
            assert seen.is_away(math.inf)
            return


def test_an_answer_that_was_asked_for_before_fcm_went_away_does_not_make_the_next_failure_count() -> None:
    seen = FcmHealth(after_losses(0, MOST, 0.0))
    for _ in range(20):
        seen.judge(PHONE, TIMEOUT, 100.0, 120.0)
    assert seen.reason is not None
    seen.judge(PHONE, ACCEPTED, 119.0, 120.5)
    assert seen.reason is not None
    assert not seen.judge(PHONE, TIMEOUT, 120.0, 121.0).uses_attempt
