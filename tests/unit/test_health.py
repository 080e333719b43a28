"""What the answers say of FCM."""

from __future__ import annotations

from listener.fcm.fault import AuthFault
from listener.fcm.outcome import Kind, Outcome, from_auth_fault
from listener.health import FcmHealth
from listener.push import Target, TargetKind
from listener.ramp import Ramp

TARGET = Target(TargetKind.TOKEN, "phone")
MOST = 1000


def health() -> FcmHealth:
    return FcmHealth(Ramp(MOST, 1.0, 0.0))


def test_while_there_are_no_access_tokens_pushes_wait_in_the_queue() -> None:
    """Not each of them once every few seconds, with a row in the log for each time."""
    no_token = from_auth_fault(
        AuthFault("OAUTH_TIMEOUT", "the token endpoint does not answer", permanent=False)
    )
    seen = health()
    for second in range(100):
        assert not seen.judge(TARGET, no_token, second, second).uses_attempt
    assert seen.reason is not None
    assert seen.limit(100.0, 1, MOST) == 0
    accepted = Outcome(Kind.ACCEPTED, "OK", "accepted by FCM", 200)
    seen.judge(TARGET, accepted, 110.0, 110.1)
    assert seen.reason is None
