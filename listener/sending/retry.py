"""What becomes of a row after an attempt, and when it is looked at again. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from listener.fcm.outcome import Disposition, Outcome
from listener.limits.retry_policy import RetryPolicy
from listener.push import Decision, Status

_AGAIN = frozenset(
    {
        Disposition.RETRY,
        Disposition.PAUSE,
        Disposition.PAUSE_PLATFORM,
        Disposition.MISFIT,
        Disposition.REFUSED,
        Disposition.REFRESH_AUTH,
    }
)


def backoff(tries: int, least: float, policy: RetryPolicy, rng: random.Random) -> float:
    """Seconds to wait after the ``tries``-th try failed: exponential with full jitter, from a floor.

    The ceiling doubles from twice the floor up to the cap, and the wait is drawn evenly between floor and ceiling.
    ``least`` is what the answer asks for (Retry-After and the like). The wait is never shorter, and a little longer, so
    that pushes with the same Retry-After are not all sent again at the same moment.
    """
    ceiling = policy.longest(tries)
    floor = min(policy.floor, ceiling)
    wait = rng.uniform(floor, ceiling)
    return wait if wait >= least else least + rng.uniform(0.0, floor)


def sent(outcomes: Iterable[Outcome | None]) -> Decision:
    """What becomes of a row that FCM has accepted for all of its targets."""
    for outcome in outcomes:
        if outcome is not None and outcome.message_id:
            return Decision(Status.SENT, None, False, None, None, outcome.message_id)
    return Decision(Status.SENT)


def decide(
    outcomes: Sequence[Outcome],
    *,
    accepted_before: int,
    retry_count: int,
    expires_in: float | None,
    policy: RetryPolicy,
    rng: random.Random,
    fcm_away: bool = False,
) -> Decision:
    """What becomes of a row after this attempt at all of its targets.

    A push to several devices has ended when none of them is worth another try. It is ``sent`` if FCM ever accepted it
    for any of them. ``expires_in`` is the number of seconds until the push expires. The last try is not used up while
    ``fcm_away``, because an outage is no reason to give up a push; nor while another device waits without using a try,
    for example because its platform is paused.
    """
    accepted = [o for o in outcomes if o.disposition is Disposition.ACCEPTED]
    message_id = next((o.message_id for o in accepted if o.message_id), None)
    if accepted and len(accepted) == len(outcomes):
        return sent(accepted)
    again = [o for o in outcomes if o.disposition in _AGAIN]
    failure = _worst(outcomes)
    code, reason = (failure.code, _summary(outcomes, failure)) if failure else (None, None)
    sent_to_some = Status.SENT if accepted or accepted_before else None

    if again:
        uses_try = any(o.uses_try for o in again)
        is_last = retry_count + 1 >= policy.max_tries
        if is_last and (fcm_away or not all(o.uses_try for o in again)):
            uses_try = False
        tries = retry_count + uses_try
        if uses_try and tries >= policy.max_tries:
            reason = f"given up after {tries} tries: {reason}"
            return Decision(sent_to_some or Status.DEAD, None, uses_try, code, reason, message_id)
        delay = backoff(max(tries, 1), max(o.delay for o in again), policy, rng)
        if expires_in is not None and delay >= expires_in:
            reason = f"expires before the next try: {reason}"
            return Decision(sent_to_some or Status.EXPIRED, None, uses_try, code, reason, message_id)
        return Decision(
            Status.FAILED if uses_try else Status.PENDING, delay, uses_try, code, reason, message_id
        )
    if sent_to_some:
        return Decision(sent_to_some, code=code, reason=reason, message_id=message_id)
    if failure is None:
        return Decision(
            Status.DEAD, code="NO_RECIPIENTS", reason="the user has no live device in push_recipients"
        )
    return Decision(
        Status.EXPIRED if failure.disposition is Disposition.EXPIRED else Status.DEAD,
        code=code,
        reason=reason,
    )


_GRAVITY = {
    Disposition.PAUSE: 0,
    Disposition.REFRESH_AUTH: 1,
    Disposition.PAUSE_PLATFORM: 2,
    Disposition.MISFIT: 3,
    Disposition.REFUSED: 4,
    Disposition.RETRY: 5,
    Disposition.DROP_MESSAGE: 6,
    Disposition.EXPIRED: 7,
    Disposition.DROP_TARGET: 8,
}


def _worst(outcomes: Sequence[Outcome]) -> Outcome | None:
    failures = [o for o in outcomes if o.disposition is not Disposition.ACCEPTED]
    return min(failures, key=lambda o: _GRAVITY[o.disposition], default=None)


def _summary(outcomes: Sequence[Outcome], failure: Outcome) -> str:
    if len(outcomes) == 1:
        return failure.reason
    same = sum(o.code == failure.code for o in outcomes)
    return f"{same} of {len(outcomes)} devices: {failure.reason}"
