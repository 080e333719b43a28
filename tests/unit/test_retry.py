"""What becomes of a row after an attempt."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from listener.fcm.outcome import Disposition, Outcome
from listener.limits.retry_policy import RetryPolicy
from listener.push import Decision, Status
from listener.sending.retry import backoff, decide

MESSAGE_ID = "projects/p/messages/1"

ACCEPTED = Outcome(Disposition.ACCEPTED, "OK", "accepted by FCM", 200, message_id=MESSAGE_ID)
RETRY = Outcome(Disposition.RETRY, "UNAVAILABLE", "in trouble", 503)
PAUSE = Outcome(Disposition.PAUSE, "PERMISSION_DENIED", "may not send", 403, uses_try=False)
PAUSE_PLATFORM = Outcome(Disposition.PAUSE_PLATFORM, "THIRD_PARTY_AUTH_ERROR", "APNs", 401, uses_try=False)
REFRESH_AUTH = Outcome(Disposition.REFRESH_AUTH, "UNAUTHENTICATED", "refused token", 401, uses_try=False)
DROP_MESSAGE = Outcome(Disposition.DROP_MESSAGE, "INVALID_ARGUMENT", "a bad field", 400)
DROP_TARGET = Outcome(Disposition.DROP_TARGET, "UNREGISTERED", "app removed", 404)
EXPIRED = Outcome(Disposition.EXPIRED, "EXPIRED", "too late")

REFUSED = Outcome(Disposition.REFUSED, "HTTP_403", "in unknown words", 403)
MISFIT = Outcome(Disposition.MISFIT, "THIRD_PARTY_AUTH_ERROR", "not for this key", 401)
EACH_KIND = [
    ACCEPTED,
    RETRY,
    PAUSE,
    PAUSE_PLATFORM,
    MISFIT,
    REFUSED,
    REFRESH_AUTH,
    DROP_MESSAGE,
    DROP_TARGET,
    EXPIRED,
]
AGAIN = {
    Disposition.RETRY,
    Disposition.PAUSE,
    Disposition.PAUSE_PLATFORM,
    Disposition.MISFIT,
    Disposition.REFUSED,
    Disposition.REFRESH_AUTH,
}

policies = st.builds(
    lambda floor, more, max_tries: RetryPolicy(floor, floor + more, max_tries),
    st.floats(0.001, 1000.0),
    st.floats(0.0, 100_000.0),
    st.integers(1, 20),
)
rngs = st.integers(0, 2**32).map(random.Random)
outcomes = st.lists(
    st.builds(
        lambda outcome, delay: replace(outcome, delay=delay if outcome.disposition in AGAIN else 0.0),
        st.sampled_from(EACH_KIND),
        st.just(0.0) | st.floats(0.0, 100_000.0),
    ),
    max_size=6,
)


def decided(
    *given_outcomes: Outcome,
    accepted_before: int = 0,
    retry_count: int = 0,
    expires_in: float | None = None,
    policy: RetryPolicy | None = None,
) -> Decision:
    return decide(
        given_outcomes,
        accepted_before=accepted_before,
        retry_count=retry_count,
        expires_in=expires_in,
        policy=policy or RetryPolicy(),
        rng=random.Random(1),
    )


# --- backoff -------------------------------------------------------------------------------------------


@given(st.integers(1, 10_000), st.just(0.0) | st.floats(0.0, 1e6), policies, rngs)
def test_a_wait_is_never_shorter_than_the_floor_or_than_asked(
    tries: int, least: float, policy: RetryPolicy, rng: random.Random
) -> None:
    wait = backoff(tries, least, policy, rng)
    assert wait >= policy.floor
    assert wait >= least


@given(st.integers(1, 10_000), policies, rngs)
def test_a_wait_of_our_own_is_never_longer_than_the_cap(
    tries: int, policy: RetryPolicy, rng: random.Random
) -> None:
    assert backoff(tries, 0.0, policy, rng) <= policy.cap


@given(st.integers(1, 40), st.floats(0.0, 1e6), policies, rngs)
def test_what_is_asked_for_is_exceeded_by_no_more_than_the_floor(
    tries: int, least: float, policy: RetryPolicy, rng: random.Random
) -> None:
    own = min(policy.cap, policy.floor * 2.0 ** min(tries, 30))
    assert backoff(tries, least, policy, rng) <= max(own, least + policy.floor)


@pytest.mark.parametrize(("tries", "ceiling"), [(1, 20.0), (2, 40.0), (3, 80.0), (8, 2560.0), (9, 3600.0)])
def test_waits_are_spread_evenly_between_floor_and_a_ceiling_that_doubles(tries: int, ceiling: float) -> None:
    rng = random.Random(7)
    waits = [backoff(tries, 0.0, RetryPolicy(), rng) for _ in range(4000)]
    tenths = [0] * 10
    for wait in waits:
        tenths[min(9, int(10 * (wait - 10.0) / (ceiling - 10.0)))] += 1
    # 400 are expected in each; six standard deviations are 114.
    assert all(280 < count < 520 for count in tenths)


def test_those_who_are_told_the_same_moment_do_not_all_come_at_it() -> None:
    rng = random.Random(7)
    waits = sorted(backoff(1, 600.0, RetryPolicy(), rng) for _ in range(1000))
    assert waits[0] >= 600.0
    assert waits[-1] - waits[0] > 9.0
    assert len(set(waits)) == 1000


# --- decide --------------------------------------------------------------------------------------------


@given(
    outcomes, st.integers(0, 3), st.integers(0, 20), st.none() | st.floats(allow_nan=False), policies, rngs
)
def test_whatever_the_outcomes(
    found: list[Outcome],
    accepted_before: int,
    retry_count: int,
    expires_in: float | None,
    policy: RetryPolicy,
    rng: random.Random,
) -> None:
    decision = decide(
        found,
        accepted_before=accepted_before,
        retry_count=retry_count,
        expires_in=expires_in,
        policy=policy,
        rng=rng,
    )
    again = [o for o in found if o.disposition in AGAIN]
    accepted = any(o.disposition is Disposition.ACCEPTED for o in found) or accepted_before > 0

    # Looked at again if and only if the status says so, in time, and no earlier than anybody asked for.
    assert (decision.delay is not None) == (decision.status in (Status.PENDING, Status.FAILED))
    if decision.delay is not None:
        assert again
        assert expires_in is None or decision.delay < expires_in
        assert decision.delay >= max(policy.floor, *(o.delay for o in again))
        assert retry_count + decision.uses_try < policy.max_tries or not decision.uses_try
    # Over: sent if any device ever accepted it, and nowhere else.
    else:
        assert (decision.status is Status.SENT) == accepted
    if decision.status is Status.FAILED:
        assert decision.uses_try
    # A try is used exactly where an outcome used one; but not the last one while another device waits without a try.
    is_last = retry_count + 1 >= policy.max_tries
    waits = any(not o.uses_try for o in again)
    assert decision.uses_try == (any(o.uses_try for o in again) and not (is_last and waits))
    # Whatever went wrong is told.
    failures = [o for o in found if o.disposition is not Disposition.ACCEPTED]
    assert (decision.code is not None) == bool(failures or decision.status is Status.DEAD)
    assert (decision.code is None) == (decision.reason is None)


@given(st.integers(1, 20), rngs)
def test_dead_after_the_last_try_and_not_before(max_tries: int, rng: random.Random) -> None:
    tries = 0
    while True:
        decision = decide(
            [RETRY],
            accepted_before=0,
            retry_count=tries,
            expires_in=None,
            policy=RetryPolicy(max_tries=max_tries),
            rng=rng,
        )
        tries += decision.uses_try
        if decision.delay is None:
            break
        assert decision.status is Status.FAILED
    assert (decision.status, tries) == (Status.DEAD, max_tries)
    assert decision.reason == f"given up after {max_tries} tries: in trouble"
    assert decision.code == "UNAVAILABLE"


@pytest.mark.parametrize("outcome", [PAUSE, PAUSE_PLATFORM, REFRESH_AUTH], ids=lambda o: str(o.disposition))
def test_what_is_not_the_fault_of_the_push_uses_no_try_and_never_kills_it(outcome: Outcome) -> None:
    decision = decided(outcome, retry_count=4)
    assert (decision.status, decision.uses_try, decision.code) == (Status.PENDING, False, outcome.code)
    assert decision.delay is not None


@given(st.floats(0.0, 1e6), st.floats(0.0, 1e6), policies, rngs)
def test_a_retry_after_past_the_expiry_expires_it(
    left: float, least: float, policy: RetryPolicy, rng: random.Random
) -> None:
    assume(least >= left)
    decision = decide(
        [replace(RETRY, delay=least)],
        accepted_before=0,
        retry_count=0,
        expires_in=left,
        policy=replace(policy, max_tries=5),
        rng=rng,
    )
    assert (decision.status, decision.delay, decision.code) == (Status.EXPIRED, None, "UNAVAILABLE")
    assert decision.reason == "expires before the next try: in trouble"


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (ACCEPTED, Status.SENT),
        (RETRY, Status.FAILED),
        (PAUSE, Status.PENDING),
        (PAUSE_PLATFORM, Status.PENDING),
        (REFRESH_AUTH, Status.PENDING),
        (DROP_MESSAGE, Status.DEAD),
        (DROP_TARGET, Status.DEAD),
        (EXPIRED, Status.EXPIRED),
    ],
    ids=lambda each: str(getattr(each, "kind", each)),
)
def test_each_kind_alone(outcome: Outcome, status: Status) -> None:
    decision = decided(outcome)
    assert decision.status is status
    if outcome is ACCEPTED:
        assert decision == Decision(Status.SENT, message_id=MESSAGE_ID)
    else:
        assert (decision.code, decision.reason) == (outcome.code, outcome.reason)


@pytest.mark.parametrize("kind", list(Disposition))
def test_every_kind_is_among_them(kind: Disposition) -> None:
    assert kind in {o.disposition for o in EACH_KIND}


@pytest.mark.parametrize("other", [DROP_MESSAGE, DROP_TARGET, EXPIRED], ids=lambda o: str(o.disposition))
def test_accepted_by_one_device_is_sent_whatever_became_of_the_others(other: Outcome) -> None:
    decision = decided(other, ACCEPTED)
    assert (decision.status, decision.message_id) == (Status.SENT, MESSAGE_ID)
    assert decision.reason == f"1 of 2 devices: {other.reason}"
    assert decided(other, accepted_before=1).status is Status.SENT


def test_a_device_worth_another_try_keeps_the_push_going_though_others_have_it() -> None:
    decision = decided(ACCEPTED, RETRY)
    assert (decision.status, decision.uses_try, decision.message_id) == (Status.FAILED, True, MESSAGE_ID)
    assert decision.delay is not None


@pytest.mark.parametrize("expires_in", [1.0, None])
def test_given_up_or_run_out_for_one_device_it_is_sent_if_another_has_it(expires_in: float | None) -> None:
    decision = decided(RETRY, accepted_before=1, retry_count=4, expires_in=expires_in)
    assert (decision.status, decision.delay) == (Status.SENT, None)


def test_a_user_without_devices() -> None:
    decision = decided()
    assert (decision.status, decision.code) == (Status.DEAD, "NO_RECIPIENTS")
    assert decided(accepted_before=2) == Decision(Status.SENT)


def test_of_several_failures_the_one_that_most_needs_a_person_is_told() -> None:
    told = decided(DROP_TARGET, RETRY, PAUSE, DROP_TARGET)
    assert (told.code, told.reason) == ("PERMISSION_DENIED", "1 of 4 devices: may not send")
    told = decided(DROP_TARGET, DROP_TARGET, DROP_MESSAGE)
    assert told.reason == "1 of 3 devices: a bad field"
    assert decided(DROP_TARGET, DROP_TARGET).reason == "2 of 2 devices: app removed"


def test_the_longest_wait_that_any_device_asked_for_is_kept() -> None:
    delay = decided(RETRY, replace(RETRY, delay=500.0), replace(RETRY, delay=50.0)).delay
    assert delay is not None
    assert 500.0 <= delay <= 510.0


def test_an_endless_life_does_not_expire() -> None:
    assert decided(RETRY, expires_in=math.inf).status is Status.FAILED
