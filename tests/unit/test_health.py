"""What the answers say of FCM, and how much is sent therefore."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.fcm.fault import AuthFault
from listener.fcm.outcome import Disposition, Limit, Outcome, from_auth_fault
from listener.limits.health import FcmHealth, Pause
from listener.limits.slow_start import SlowStart, after_losses
from listener.push import Push, Target, TargetKind
from tests.support.pushes import push

PHONE = Target(TargetKind.TOKEN, "phone")
IPHONE = Target(TargetKind.TOKEN, "iphone", "ios")
ANDROID = Target(TargetKind.TOKEN, "android", "android")
TOPIC = Target(TargetKind.TOPIC, "news")
MOST = 1000

ACCEPTED = Outcome(Disposition.ACCEPTED, "OK", "accepted by FCM", 200)
DEAD = Outcome(Disposition.DROP_TARGET, "UNREGISTERED", "gone", 404)
BAD = Outcome(Disposition.DROP_MESSAGE, "INVALID_ARGUMENT", "bad", 400)
QUOTA = Outcome(Disposition.RETRY, "QUOTA_EXCEEDED", "used up", 429, delay=60.0, limit=Limit.PROJECT)
REFUSED = Outcome(Disposition.PAUSE, "PERMISSION_DENIED", "may not send", 403, uses_try=False)
NO_KEY = Outcome(Disposition.PAUSE, "OAUTH_INVALID_GRANT", "the key is not valid", uses_try=False)
UNAVAILABLE = Outcome(Disposition.RETRY, "UNAVAILABLE", "in trouble", 503, ambiguous=True)
TIMEOUT = Outcome(Disposition.RETRY, "TIMEOUT", "no answer", ambiguous=True)
NO_TOKEN = from_auth_fault(AuthFault("OAUTH_TIMEOUT", "the token endpoint does not answer", permanent=False))
NO_APNS = Outcome(Disposition.PAUSE_PLATFORM, "THIRD_PARTY_AUTH_ERROR", "APNs", 401, uses_try=False)
MISFIT = Outcome(Disposition.MISFIT, "THIRD_PARTY_AUTH_ERROR", "not for this key", 401)
ODD = Outcome(Disposition.REFUSED, "HTTP_403", "in unknown words", 403)

ANSWERS = [ACCEPTED, DEAD, BAD, QUOTA, NO_APNS, MISFIT, ODD]
FAILURES = [UNAVAILABLE, TIMEOUT, NO_TOKEN]
ALL = [*ANSWERS, *FAILURES, REFUSED, NO_KEY]


def health(*, guard: bool = True) -> FcmHealth:
    return FcmHealth(SlowStart(MOST, 1.0, -1000.0), token_loss_guard=guard)


def judge(
    seen: FcmHealth, target: Target, outcome: Outcome, asked: float, now: float, of: Push | None = None
) -> Outcome:
    """The answer to a push of its own, or to one that the test names."""
    return seen.judge(of or push(id=uuid4()), target, outcome, asked, now)


def phone(number: int, platform: str | None = None) -> Target:
    return Target(TargetKind.TOKEN, f"phone-{number}", platform)


def again(one: Push) -> Push:
    """The next attempt at the same push."""
    return replace(one, attempt=one.attempt + 1)


def code(outcome: Outcome) -> str:
    return outcome.code


def away(at: float = 100.0) -> FcmHealth:
    """FCM has been silent twenty times."""
    seen = health()
    for _ in range(20):
        judge(seen, PHONE, TIMEOUT, at - 1.0, at)
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
    for number in range(times):
        judge(seen, phone(number), outcome, 99.0, 100.0)
    assert seen.pause_kind is kind
    assert (seen.reason is None) is (kind is None)
    judge(seen, PHONE, ACCEPTED, 200.0, 201.0)
    assert (seen.pause_kind, seen.reason) == (None, None)


def test_a_kind_says_nothing_that_fcm_has_said() -> None:
    seen = health()
    judge(seen, PHONE, replace(REFUSED, reason="S3cr3t"), 99.0, 100.0)
    assert "S3cr3t" in str(seen.reason)
    assert "S3cr3t" not in str(seen.pause_kind)


# --- away ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", FAILURES, ids=code)
def test_twenty_failures_in_a_row_mean_that_fcm_is_away(failure: Outcome) -> None:
    seen = health()
    for n in range(19):
        assert judge(seen, PHONE, failure, n, n + 0.5) is failure
    assert (seen.reason, seen.limit(19.0, 500, MOST)) == (None, MOST)
    last = judge(seen, PHONE, failure, 19.0, 19.5)
    assert seen.reason == f"FCM is away: {failure.reason}"
    assert (last.disposition, last.uses_try) == (Disposition.RETRY, False)
    assert seen.limit(19.5, 0, MOST) == 0


@pytest.mark.parametrize("answer", [*ANSWERS, REFUSED], ids=code)
def test_any_answer_between_them_begins_the_count_anew(answer: Outcome) -> None:
    seen = health()
    for n in range(19):
        judge(seen, PHONE, UNAVAILABLE, n, n + 0.5)
    judge(seen, TOPIC, answer, 19.0, 19.5)
    for n in range(20, 39):
        judge(seen, PHONE, UNAVAILABLE, n, n + 0.5)
    assert not (seen.reason or "").startswith("FCM is away")


def test_what_was_under_way_when_it_went_uses_no_try_and_makes_the_pause_no_longer() -> None:
    seen = away(100.0)
    for n in range(500):
        assert not judge(seen, PHONE, TIMEOUT, 99.0, 100.0 + n / 1000).uses_try
    assert seen.changes_in(100.5, 0) == pytest.approx(1.5)


def test_it_is_asked_after_two_seconds_and_then_every_four() -> None:
    seen, now, waits = away(100.0), 100.0, []
    for _ in range(5):
        wait = seen.changes_in(now, 0)
        assert wait is not None
        waits.append(wait)
        now += wait
        assert (seen.limit(now, 0, MOST), seen.limit(now, 1, MOST)) == (1, 0)
        assert not judge(seen, PHONE, TIMEOUT, now, now + 15.0).uses_try
        now += 15.0
    assert waits == [2.0, 4.0, 4.0, 4.0, 4.0]


@pytest.mark.parametrize("answer", ANSWERS, ids=code)
def test_an_answer_to_the_probe_ends_it_and_sending_begins_gently(answer: Outcome) -> None:
    seen = away(100.0)
    judge(seen, PHONE, answer, 102.0, 102.1)
    assert seen.reason is None
    assert [seen.limit(102.1 + n, 0, MOST) for n in range(4)] == [8, 16, 32, 64]
    assert seen.limit(112.0, 0, MOST) == MOST


def test_an_answer_that_was_asked_for_before_it_went_does_not_end_it() -> None:
    seen = away(100.0)
    judge(seen, PHONE, ACCEPTED, 99.0, 101.0)
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
        assert not judge(seen, PHONE, UNAVAILABLE, 100.2, 101.0 + n / 100).uses_try
    assert (seen.reason, seen.limit(111.0, 0, MOST)) == (None, 8)


def test_unless_no_question_is_answered_any_more() -> None:
    seen = in_doubt()
    judge(seen, PHONE, UNAVAILABLE, 130.0, 130.2)
    assert (seen.reason, seen.limit(130.2, 0, MOST)) == ("FCM is away: in trouble", 0)
    seen.answered(ACCEPTED, 130.2, 130.3)
    assert seen.in_doubt


def test_the_first_answer_to_a_push_ends_the_doubt() -> None:
    seen = in_doubt()
    judge(seen, PHONE, ACCEPTED, 110.0, 111.0)
    assert not seen.in_doubt
    assert [seen.limit(111.0 + n, 0, MOST) for n in range(3)] == [8, 16, 32]
    assert judge(seen, PHONE, UNAVAILABLE, 111.0, 112.0).uses_try


# --- away, again ---------------------------------------------------------------------------------------------


def test_an_end_does_not_widen_a_start_that_is_gentler_still() -> None:
    """Workers have died lately: what killed them may still be there."""
    seen = FcmHealth(after_losses(5, MOST, 100.0))
    for _ in range(20):
        judge(seen, PHONE, TIMEOUT, 99.0, 100.0)
    judge(seen, PHONE, ACCEPTED, 102.0, 102.1)
    assert (seen.reason, seen.limit(102.1, 0, MOST)) == (None, 1)


def test_it_counts_as_away_until_it_has_answered_and_when_it_has_not_for_a_minute() -> None:
    seen = health()
    assert seen.is_away(0.0)
    judge(seen, PHONE, ACCEPTED, 0.0, 1.0)
    assert not seen.is_away(61.0)
    assert seen.is_away(61.1)


def test_a_refusal_is_an_answer_all_the_same() -> None:
    seen = health()
    judge(seen, PHONE, REFUSED, 0.0, 1.0)
    assert not seen.is_away(2.0)


def test_who_refuses_us_after_having_been_away_is_asked_as_rarely_as_one_who_refuses() -> None:
    seen = away(100.0)
    judge(seen, PHONE, REFUSED, 102.0, 102.1)
    judge(seen, PHONE, REFUSED, 102.5, 103.0)
    assert (seen.reason, seen.changes_in(103.0, 0)) == ("may not send", 30.0)
    judge(seen, PHONE, ACCEPTED, 140.0, 140.1)
    assert seen.reason is None


def test_while_there_are_no_access_tokens_pushes_wait_in_the_queue() -> None:
    """Not each of them once every few seconds, with a row in the log for each time."""
    seen = health()
    for second in range(100):
        assert not judge(seen, PHONE, NO_TOKEN, second, second).uses_try
    assert seen.reason is not None
    assert seen.limit(100.0, 1, MOST) == 0
    judge(seen, PHONE, ACCEPTED, 110.0, 110.1)
    assert seen.reason is None


# --- refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [REFUSED, NO_KEY], ids=code)
def test_a_refusal_stops_everything_but_a_probe(refusal: Outcome) -> None:
    seen = health()
    if refusal is REFUSED:
        # It may concern one push only, so another one is the probe at once.
        assert judge(seen, phone(1), REFUSED, 98.0, 98.1).delay == 30.0
        assert (seen.reason, seen.limit(98.1, 0, MOST), seen.limit(98.1, 1, MOST)) == (refusal.reason, 1, 0)
    assert not judge(seen, PHONE, refusal, 99.0, 100.0).uses_try
    assert (seen.reason, seen.limit(129.9, 0, MOST), seen.limit(130.0, 0, MOST)) == (refusal.reason, 0, 1)
    assert (seen.changes_in(100.0, 0), seen.changes_in(100.0, 3)) == (30.0, None)
    judge(seen, PHONE, ACCEPTED, 130.0, 130.1)
    assert (seen.reason, seen.limit(130.1, 0, MOST)) == (None, 8)


def test_an_access_token_lets_a_pause_for_want_of_one_be_probed_at_once() -> None:
    seen = health()
    judge(seen, PHONE, NO_KEY, 99.0, 100.0)
    assert (seen.limit(110.0, 0, MOST), seen.note_token(110.0)) == (0, True)
    assert (seen.limit(110.0, 0, MOST), seen.limit(110.0, 1, MOST), seen.note_token(110.0)) == (1, 0, False)
    judge(seen, PHONE, NO_KEY, 110.0, 111.0)
    assert (seen.limit(170.9, 0, MOST), seen.limit(171.0, 0, MOST)) == (0, 1)


def test_an_access_token_says_nothing_of_another_pause() -> None:
    seen = health()
    assert not seen.note_token(90.0)
    judge(seen, phone(1), REFUSED, 98.0, 98.1)
    judge(seen, PHONE, REFUSED, 99.0, 100.0)
    assert (seen.limit(110.0, 0, MOST), seen.note_token(110.0), seen.limit(110.0, 0, MOST)) == (0, False, 0)


# --- refused: everything, or one push ------------------------------------------------------------------------


def accepting(at: float = 100.0) -> FcmHealth:
    """FCM has just accepted a push."""
    seen = health()
    judge(seen, PHONE, ACCEPTED, at - 0.1, at)
    return seen


def test_a_refusal_while_others_are_accepted_is_the_trouble_of_that_push() -> None:
    seen, bad, now, delays, used = accepting(), push(id=uuid4()), 100.0, [], []
    for _ in range(6):
        now += 10.0
        judge(seen, PHONE, ACCEPTED, now - 1.0, now - 0.9)
        refused = judge(seen, phone(1), REFUSED, now, now + 0.1, bad)
        assert (refused.disposition, refused.code) == (Disposition.PAUSE, "PERMISSION_DENIED")
        assert (seen.reason, seen.limit(now + 0.1, 500, MOST)) == (None, MOST)
        delays.append(refused.delay)
        used.append(refused.uses_try)
        bad = again(bad)
    assert delays == [20.0, 40.0, 80.0, 160.0, 320.0, 640.0]
    assert used == [False, True, True, True, True, True]
    assert refused.reason == "FCM refuses this push while it accepts others: may not send"


def test_it_uses_no_try_while_no_other_was_accepted_since() -> None:
    seen, bad, used = accepting(100.0), push(id=uuid4()), []
    for now in (101.0, 102.0, 103.0):
        used.append(judge(seen, phone(1), REFUSED, now, now + 0.1, bad).uses_try)
        bad = again(bad)
    judge(seen, PHONE, ACCEPTED, 102.9, 104.0)  # was asked for before the last refusal
    used.append(judge(seen, phone(1), REFUSED, 105.0, 105.1, again(bad)).uses_try)
    judge(seen, PHONE, ACCEPTED, 106.0, 106.1)
    judge(seen, PHONE, ACCEPTED, 90.0, 106.2)  # a slow answer
    used.append(judge(seen, phone(1), REFUSED, 107.0, 107.1, again(again(bad))).uses_try)
    assert used == [False, False, False, False, True]
    assert seen.reason is None


def test_the_devices_of_one_attempt_are_one_refusal() -> None:
    seen, bad = accepting(), push(id=uuid4(), user_id=UUID(int=1))
    for n in range(100):
        refused = judge(seen, phone(n), REFUSED, 101.0 + n, 101.1 + n, bad)
        judge(seen, PHONE, ACCEPTED, 101.2 + n, 101.3 + n)
        assert (refused.delay, refused.uses_try, seen.reason) == (20.0, False, None)


@pytest.mark.parametrize("third", [phone(3), TOPIC], ids=lambda target: str(target.kind))
def test_three_refused_and_none_accepted_between_stop_everything_and_use_no_try(third: Target) -> None:
    seen = accepting()
    refused = [judge(seen, target, REFUSED, 101.0, 101.1) for target in (phone(1), phone(2), third)]
    assert (seen.reason, seen.changes_in(101.1, 0)) == ("may not send", 30.0)
    assert not any(outcome.uses_try for outcome in refused)
    assert [outcome.delay for outcome in refused] == [20.0, 20.0, 30.0]


def test_an_acceptance_between_begins_the_count_anew() -> None:
    seen = accepting()
    for n in range(100):
        judge(seen, phone(n), REFUSED, 101.0 + n, 101.1 + n)
        if n % 2:
            judge(seen, PHONE, ACCEPTED, 101.2 + n, 101.3 + n)
    assert seen.reason is None


def test_many_pushes_to_one_user_or_to_one_token_are_one_refusal() -> None:
    seen = accepting()
    for n in range(50):
        judge(seen, phone(n), REFUSED, 101.0, 101.1, push(id=uuid4(), user_id=UUID(int=1)))
        judge(seen, phone(1), REFUSED, 101.0, 101.1)
    assert seen.reason is None


def test_one_is_enough_when_nothing_was_accepted_for_a_minute() -> None:
    seen = accepting(100.0)
    judge(seen, phone(1), REFUSED, 159.0, 159.1)
    assert seen.reason is None
    judge(seen, phone(1), REFUSED, 160.0, 160.1)
    assert seen.reason == "may not send"


def test_a_missing_access_token_is_nobodys_own_trouble() -> None:
    seen = accepting()
    judge(seen, phone(1), NO_KEY, 101.0, 101.1)
    assert seen.reason == "the key is not valid"


def test_what_was_asked_later_and_is_accepted_shows_that_it_was_one_push() -> None:
    """Both were under way when the first answer came, and nothing had been accepted before."""
    seen = health()
    judge(seen, phone(1), REFUSED, 100.0, 100.1)
    judge(seen, phone(2), ACCEPTED, 99.9, 100.2)
    assert seen.reason is not None
    judge(seen, phone(3), ACCEPTED, 100.05, 100.2)
    assert [seen.reason, seen.limit(100.2, 0, MOST)] == [None, 8]


@pytest.mark.parametrize("trouble", [REFUSED, DEAD], ids=code)
def test_a_push_that_is_refused_as_the_probe_comes_after_the_others(trouble: Outcome) -> None:
    """It waits longer each time, and any other push may be the next probe at once."""
    seen, bad, now = health(), push(id=uuid4(), attempt=0), 100.0
    if trouble is DEAD:
        for n in range(2, 21):
            judge(seen, phone(n), DEAD, now, now)
    judged, waits, closed = REFUSED, [], []
    for _ in range(6):
        bad = again(bad)
        judged = judge(seen, phone(1), trouble, now, now, bad)
        assert (judged.disposition, judged.uses_try) == (Disposition.PAUSE, False)
        waits.append(judged.delay)
        closed.append(seen.changes_in(now, 0))
        now += judged.delay
    assert waits == [30.0, 60.0, 120.0, 240.0, 480.0, 960.0]
    assert closed == ([0.0] if trouble is REFUSED else [30.0]) + 5 * [0.0]
    judge(seen, PHONE, ACCEPTED, now, now)
    assert seen.reason is None


def test_other_pushes_that_are_refused_as_probes_make_the_pause_longer() -> None:
    seen, now, waits, refused = health(), 100.0, [], []
    for _ in range(7):
        refused.append(push(id=uuid4()))
        judged = judge(seen, PHONE, REFUSED, now, now, refused[-1])
        wait = seen.changes_in(now, 0)
        assert wait is not None
        assert judged.delay >= max(wait, 30.0)
        waits.append(wait)
        now += wait
    assert waits == [0.0, 30.0, 60.0, 120.0, 240.0, 300.0, 300.0]
    # Those that were refused before say nothing new.
    for one in refused:
        judge(seen, PHONE, REFUSED, now, now, again(one))
        assert (seen.changes_in(now, 0), seen.reason) == (0.0, "may not send")


def test_a_push_waits_longer_each_time_though_nobody_remembers_it() -> None:
    """The process is another one, or has forgotten it: it has refused ten thousand others since."""
    waits, of_token, used = [], [], []
    for attempt in range(1, 10):
        seen = accepting(100.0)
        bad = push(id=uuid4(), attempt=attempt + 2, lost_claims=2, retry_count=attempt - 1)
        waits.append(judge(seen, phone(1), REFUSED, 101.0, 101.1, bad).delay)
        refused = judge(seen, phone(2), NO_APNS, 101.0, 101.1, replace(bad, id=uuid4()))
        of_token.append(refused.delay)
        used.append(refused.uses_try)
    assert waits == [20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0, 3600.0]
    assert of_token == [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0, 3600.0]
    assert not any(used)  # nothing is known to have been accepted between


def test_a_push_to_a_token_that_its_platform_refuses_dies_if_others_are_accepted() -> None:
    """The platform is not known, and its key may be mended within hours."""
    seen, bad, now, used = health(), push(id=uuid4()), 100.0, []
    for _ in range(12):
        refused = judge(seen, phone(1), NO_APNS, now, now, bad)
        used.append(refused.uses_try)
        judge(seen, PHONE, ACCEPTED, now + 1.0, now + 1.0)
        now, bad = now + refused.delay, again(bad)
    assert used == 6 * [False] + 6 * [True]


def test_a_push_that_was_refused_while_others_were_accepted_stops_nothing_ever() -> None:
    seen, bad = health(), push(id=uuid4())
    judge(seen, phone(1), REFUSED, 100.0, 100.1, bad)
    judge(seen, PHONE, ACCEPTED, 130.0, 130.1)
    assert judge(seen, phone(1), REFUSED, 1000.0, 1000.1, again(bad)).uses_try
    assert not judge(seen, phone(1), REFUSED, 2000.0, 2000.1, again(again(bad))).uses_try
    assert seen.reason is None
    # And if everything is paused, its being the probe makes that no longer.
    for moment in (2999.0, 3000.0):
        judge(seen, phone(2), REFUSED, moment, moment + 0.1)
    assert seen.changes_in(3000.1, 0) == 30.0
    refused = judge(seen, phone(1), REFUSED, 3030.1, 3030.2, again(again(again(bad))))
    assert (refused.uses_try, refused.delay, seen.limit(3030.2, 0, MOST)) == (False, 160.0, 1)


def test_a_push_that_was_refused_while_others_were_accepted_uses_no_try_while_everything_is_paused() -> None:
    seen, bad = accepting(), push(id=uuid4())
    judge(seen, phone(1), REFUSED, 101.0, 101.1, bad)
    judge(seen, PHONE, ACCEPTED, 102.0, 102.1)
    judge(seen, phone(2), NO_KEY, 103.0, 103.1)
    assert not judge(seen, phone(1), REFUSED, 133.1, 133.2, again(bad)).uses_try


def test_only_so_many_refused_pushes_are_remembered() -> None:
    seen = accepting()
    for _ in range(10_100):
        judge(seen, phone(1), REFUSED, 101.0, 101.1)
    assert len(seen._refused_pushes._pushes) == 10_000


answers_to_others = st.sampled_from([DEAD, BAD, QUOTA, TIMEOUT])
one_users = st.lists(
    st.tuples(
        st.sampled_from([DEAD, REFUSED, NO_APNS, MISFIT, ODD, BAD]),
        st.integers(0, 200),  # the device
        st.integers(0, 3),  # the push
        st.sampled_from([None, "ios", "android"]),
    ),
    max_size=150,
)


@given(st.lists(st.tuples(one_users, st.floats(0.0, 59.0)), max_size=6))
def test_nothing_of_one_user_pauses_the_others_while_another_is_accepted(
    history: list[tuple[list[tuple[Outcome, int, int, str | None]], float]],
) -> None:
    seen, now, user = accepting(1000.0), 1000.0, UUID(int=1)
    pushes = [push(id=UUID(int=n), user_id=user) for n in range(4)]
    for answers, passed in history:
        for outcome, device, number, platform in answers:
            pushes[number] = again(pushes[number])
            judge(seen, phone(device, platform), outcome, now, now, pushes[number])
            assert seen.reason is None
            assert [seen.platform_wait(name, now) for name in ("ios", "android")] == [0.0, 0.0]
        now += passed
        judge(seen, PHONE, ACCEPTED, now, now, push(id=uuid4(), user_id=UUID(int=2)))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),  # the push
            st.sampled_from([REFUSED, REFUSED, ACCEPTED, DEAD, TIMEOUT]),
            st.floats(0.0, 90.0),  # since the answer before it
        ),
        max_size=60,
    )
)
def test_a_refusal_uses_a_try_only_if_others_were_accepted_since_the_one_before_and_nothing_is_paused(
    answers: list[tuple[int, Outcome, float]],
) -> None:
    seen, now = health(), 1000.0
    pushes = {n: push(id=UUID(int=n)) for n in range(5)}
    accepted_since: dict[int, bool] = {}
    for number, outcome, passed in answers:
        now += 1.0 + passed
        pushes[number] = again(pushes[number])
        judged = judge(seen, phone(number), outcome, now, now + 0.5, pushes[number])
        if outcome is REFUSED:
            assert judged.uses_try == (accepted_since.get(number, False) and seen.reason is None)
            accepted_since[number] = False
        elif outcome is ACCEPTED:
            accepted_since = dict.fromkeys(accepted_since, True)
    now += 1.0
    # And a key that is revoked now is noticed after three pushes, whatever came before.
    for n in range(3):
        assert not judge(seen, phone(100 + n), REFUSED, now + n, now + n).uses_try
    assert seen.reason is not None


# --- the guard against the loss of tokens ------------------------------------------------------------------


def test_when_every_token_is_called_dead_it_pauses() -> None:
    seen = health()
    judged = [judge(seen, phone(n), DEAD, n, n + 0.1) for n in range(30)]
    assert [outcome.disposition for outcome in judged] == [Disposition.DROP_TARGET] * 19 + [
        Disposition.PAUSE
    ] * 11
    assert {(outcome.code, outcome.uses_try) for outcome in judged[19:]} == {("TOKEN_LOSS", False)}
    assert (seen.reason or "").startswith("FCM calls the devices of 30 of the last 30 users dead")
    assert seen.limit(29.1, 0, MOST) == 0


def test_a_topic_that_is_accepted_is_no_sign_that_the_tokens_are_not_lost() -> None:
    """A wrong project accepts messages to its own topics."""
    seen = health()
    for n in range(20):
        judge(seen, TOPIC, ACCEPTED, n, n + 0.1)
        judge(seen, phone(n), DEAD, n + 0.2, n + 0.3)
    assert seen.reason is not None


def test_while_some_are_accepted_only_the_push_to_a_dead_device_waits_and_it_uses_a_try() -> None:
    seen = health()
    judge(seen, PHONE, ACCEPTED, 0.0, 0.1)
    judged = [judge(seen, phone(n), DEAD, n, n + 0.1) for n in range(60)]
    assert judged[:18] == [DEAD] * 18
    assert {(outcome.disposition, outcome.code, outcome.uses_try) for outcome in judged[18:]} == {
        (Disposition.RETRY, "TOKEN_LOSS", True)
    }
    assert (seen.reason, seen.fails) == (None, False)


def test_a_token_that_is_alive_ends_that_pause() -> None:
    seen = health()
    for n in range(20):
        judge(seen, phone(n), DEAD, n, n + 0.1)
    judge(seen, PHONE, ACCEPTED, 50.0, 50.1)
    assert seen.reason is None


def test_without_the_guard_every_dead_token_is_believed() -> None:
    seen = health(guard=False)
    for n in range(500):
        assert judge(seen, phone(n), DEAD, n, n + 0.1) is DEAD
    assert seen.reason is None


def test_what_is_said_of_topics_says_nothing_of_tokens() -> None:
    seen = health()
    for n in range(100):
        assert judge(seen, Target(TargetKind.TOPIC, f"topic-{n}"), DEAD, n, n + 0.1) is DEAD


# --- a platform refused ------------------------------------------------------------------------------------


def ios_refused(at: float = 100.0) -> FcmHealth:
    """Three users' pushes to iPhones have just been refused."""
    seen = health()
    for n in range(3):
        judge(seen, phone(n, "ios"), NO_APNS, at - 1.0, at)
    return seen


def test_a_platform_of_which_three_are_refused_waits_and_the_others_go_on() -> None:
    seen = health()
    refused = [judge(seen, phone(n, "ios"), NO_APNS, 99.0, 100.0) for n in range(3)]
    assert {(each.disposition, each.uses_try) for each in refused} == {(Disposition.PAUSE_PLATFORM, False)}
    assert [each.delay for each in refused] == [20.0, 20.0, 60.0]
    assert (seen.platform_wait("ios", 110.0), seen.platform_wait("ios", 160.0)) == (50.0, 0.0)
    assert [seen.platform_wait(name, 110.0) for name in ("android", "web", None)] == [0.0, 0.0, 0.0]
    assert (seen.reason, seen.limit(110.0, 0, MOST)) == (None, MOST)


def test_one_push_that_is_refused_waits_longer_each_time_and_its_platform_does_not() -> None:
    """An app built for Apple's test environment, say: its token is refused, and all others are not."""
    seen, bad, now, told = health(), push(id=uuid4()), 100.0, []
    for _ in range(7):
        refused = judge(seen, phone(1, "ios"), NO_APNS, now, now, bad)
        told.append((refused.delay, refused.uses_try))
        assert seen.platform_wait("ios", now) == 0.0
        judge(seen, IPHONE, ACCEPTED, now + 1.0, now + 1.0)
        now, bad = now + refused.delay, again(bad)
    assert [used for _, used in told] == [False] + [True] * 6
    assert [delay for delay, _ in told] == [20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0]


def test_one_that_was_refused_while_others_were_accepted_does_not_make_the_wait_longer() -> None:
    seen, bad = health(), push(id=uuid4())
    judge(seen, phone(9, "ios"), NO_APNS, 10.0, 10.0, bad)
    judge(seen, IPHONE, ACCEPTED, 20.0, 20.0)
    for n in range(3):
        judge(seen, phone(n, "ios"), NO_APNS, 100.0, 100.0)
    judge(seen, phone(9, "ios"), NO_APNS, 161.0, 161.0, again(bad))
    assert seen.platform_wait("ios", 161.0) == 0.0


def test_what_was_under_way_then_waits_as_long_and_makes_it_no_longer() -> None:
    seen = ios_refused()
    assert judge(seen, IPHONE, NO_APNS, 99.0, 110.0).delay == 50.0
    assert judge(seen, IPHONE, NO_APNS, 99.0, 500.0).delay == 0.0


def test_each_time_it_is_refused_again_it_waits_twice_as_long_up_to_ten_minutes() -> None:
    seen, now = ios_refused(), 160.0
    waits = [seen.platform_wait("ios", 100.0)]
    for _ in range(5):
        judge(seen, IPHONE, NO_APNS, now, now + 1.0)
        now += 1.0
        waits.append(seen.platform_wait("ios", now))
        now += waits[-1]
    assert waits == [60.0, 120.0, 240.0, 480.0, 600.0, 600.0]


def test_one_request_finds_out_whether_a_platform_is_accepted_again() -> None:
    """However many devices of it a push has, or wait."""
    seen = ios_refused()
    assert [seen.platform_wait("ios", 160.0) for _ in range(5000)] == [0.0] + 4999 * [15.0]
    assert seen.platform_wait("ios", 165.0) == 10.0
    judge(seen, IPHONE, DEAD, 160.0, 165.0)  # says nothing, so another one asks
    assert [seen.platform_wait("ios", 175.0) for _ in range(2)] == [0.0, 15.0]
    judge(seen, IPHONE, NO_APNS, 175.0, 176.0)
    assert seen.platform_wait("ios", 176.0) == 120.0
    assert seen.platform_wait("ios", 296.0) == 0.0
    judge(seen, IPHONE, ACCEPTED, 296.0, 297.0)
    assert [seen.platform_wait("ios", 297.0) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_one_accepted_push_is_enough_to_go_on() -> None:
    seen = ios_refused()
    judge(seen, IPHONE, ACCEPTED, 160.0, 160.1)
    assert seen.platform_wait("ios", 160.1) == 0.0
    for n in range(3):
        judge(seen, phone(n, "ios"), NO_APNS, 161.0, 162.0)
    assert seen.platform_wait("ios", 162.0) == 60.0


@pytest.mark.parametrize("other", [DEAD, BAD, QUOTA, UNAVAILABLE, REFUSED], ids=code)
def test_answers_that_say_nothing_of_its_credentials_do_not_end_its_wait(other: Outcome) -> None:
    """FCM knows that a token is dead before it asks Apple, so dead ones are no sign that the key has been mended."""
    seen = ios_refused()
    judge(seen, IPHONE, other, 101.0, 102.0)
    assert seen.platform_wait("ios", 102.0) == 58.0


def test_neither_does_one_that_was_accepted_before_or_on_another_platform() -> None:
    seen = ios_refused()
    judge(seen, IPHONE, ACCEPTED, 99.5, 101.0)
    judge(seen, ANDROID, ACCEPTED, 101.0, 101.1)
    judge(seen, PHONE, ACCEPTED, 101.0, 101.1)
    assert seen.platform_wait("ios", 102.0) == 58.0


@pytest.mark.parametrize("platform", ["ios", None])
def test_one_device_that_does_not_fit_the_key_pays_with_its_tries_and_nobody_waits(
    platform: str | None,
) -> None:
    """A test build beside a key for production, say: each attempt uses a try, whether others are accepted or not."""
    seen, bad, now, waits = health(), push(id=uuid4()), 100.0, []
    for _ in range(5):
        refused = judge(seen, phone(1, platform), MISFIT, now, now, bad)
        assert refused.uses_try
        waits.append(refused.delay)
        assert (seen.platform_wait("ios", now), seen.reason, seen.held_platforms) == (0.0, None, {})
        now, bad = now + refused.delay, again(bad)
    assert waits == sorted(set(waits))


def test_if_several_devices_do_not_fit_the_key_it_is_the_keys_fault() -> None:
    seen = health()
    refused = [judge(seen, phone(n, "ios"), MISFIT, 99.0, 100.0) for n in range(3)]
    assert [each.uses_try for each in refused] == [True, True, False]
    assert (seen.platform_wait("ios", 110.0), seen.held_platforms) == (50.0, {"ios": "not for this key"})
    assert not judge(seen, phone(3, "ios"), MISFIT, 99.0, 110.0).uses_try
    judge(seen, IPHONE, ACCEPTED, 160.0, 161.0)
    assert seen.held_platforms == {}


def test_devices_that_do_not_fit_hold_no_platform_while_others_are_accepted() -> None:
    seen = health()
    for n in range(20):
        judge(seen, phone(n, "ios"), MISFIT, 100.0 + n, 100.0 + n)
        judge(seen, IPHONE, ACCEPTED, 100.5 + n, 100.5 + n)
        assert seen.platform_wait("ios", 100.5 + n) == 0.0


def test_a_message_that_fcm_refuses_in_unknown_words_pauses_nothing_and_dies() -> None:
    seen = health()
    for n in range(10):
        bad = push(id=uuid4())
        waits = []
        for _ in range(4):
            refused = judge(seen, phone(n), ODD, 100.0, 100.0, bad)
            assert (refused.uses_try, seen.reason, seen.fails) == (True, None, False)
            waits.append(refused.delay)
            bad = again(bad)
        assert waits == sorted(set(waits))


def test_only_an_accepted_question_shows_that_fcm_accepts() -> None:
    seen = health()
    for answer in (BAD, REFUSED, UNAVAILABLE, TIMEOUT):
        seen.answered(answer, 99.0, 100.0)
        assert not seen.accepts_questions(100.0)
    seen.answered(ACCEPTED, 99.0, 100.0)
    assert (seen.accepts_questions(109.9), seen.accepts_questions(110.0)) == (True, False)


def test_a_push_of_unknown_platform_waits_alone() -> None:
    seen = health()
    bad = push(id=uuid4())
    assert judge(seen, PHONE, NO_APNS, 99.0, 100.0, bad).delay == 60.0
    assert judge(seen, PHONE, NO_APNS, 160.0, 160.0, again(bad)).delay == 120.0
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
    seen, now = FcmHealth(SlowStart(1, 5.0, 1000.0)), 1000.0
    yield seen, now
    for (target, outcome, passed, took), times in burst:
        for _ in range(times):
            now += passed
            judge(seen, target, outcome, now - took, now)
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
            judge(seen, target, ACCEPTED, now, now + 0.1)
        now += 0.1
    assert (seen.reason, seen.limit(now + 60.0, 0, MOST), seen.platform_wait("ios", now)) == (None, MOST, 0.0)


@given(bursts)
def test_no_try_is_used_while_sending_is_paused(
    burst: list[tuple[tuple[Target, Outcome, float, float], int]],
) -> None:
    for seen, now in told(burst):
        if (seen.reason or "").startswith("FCM is away"):
            assert not judge(seen, PHONE, TIMEOUT, now, now + 1.0).uses_try
            assert seen.is_away(math.inf)
            return


def test_an_answer_that_was_asked_for_before_fcm_went_away_does_not_make_the_next_failure_count() -> None:
    seen = FcmHealth(after_losses(0, MOST, 0.0))
    for _ in range(20):
        judge(seen, PHONE, TIMEOUT, 100.0, 120.0)
    assert seen.reason is not None
    judge(seen, PHONE, ACCEPTED, 119.0, 120.5)
    assert seen.reason is not None
    assert not judge(seen, PHONE, TIMEOUT, 120.0, 121.0).uses_try
