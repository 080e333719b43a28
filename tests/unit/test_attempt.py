"""One attempt at one row, with senders that do as they are told."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import time
from typing import cast
from uuid import UUID, uuid4

import pytest

from listener import clock, config
from listener.clock import elapsed
from listener.fcm.outcome import Disposition, Outcome
from listener.fcm.sender import Sender
from listener.fcm.transports.base import Outgoing
from listener.limits.health import FcmHealth
from listener.limits.quota import Quota
from listener.limits.shared_quota import SharedQuota
from listener.limits.slow_start import after_losses
from listener.metrics.own import Metrics
from listener.postgres.workers import Workers
from listener.push import Push, Status, Target, TargetKind
from listener.sending.attempt import Attempts
from listener.sending.fcm_question import FcmQuestion
from listener.sending.pause_report import PauseReport
from listener.sending.trail import Trail
from listener.tracing import Tracing
from listener.wakeup.look_signal import LookSignal
from tests.support.pushes import push

ACCEPTED = Outcome(Disposition.ACCEPTED, "OK", "accepted by FCM", 200, message_id="projects/p/messages/1")
REFUSED = Outcome(Disposition.PAUSE, "PERMISSION_DENIED", "may not send", 403, uses_try=False)
NO_APNS = Outcome(Disposition.PAUSE_PLATFORM, "THIRD_PARTY_AUTH_ERROR", "APNs", 401, uses_try=False)


class _Broken:
    """Accepts what goes to the device "good"; the request to any other one is cancelled by nobody that is known."""

    async def send(self, outgoing: Outgoing) -> Outcome:
        if b'"good"' in outgoing.make_body():
            return ACCEPTED
        raise asyncio.CancelledError


async def test_a_request_that_is_cancelled_from_within_may_have_been_delivered() -> None:
    settlement = await _attempts(_Broken()).attempt(_push("good", "bad"), elapsed())
    assert (settlement.decision.status, settlement.decision.code) == (Status.PENDING, "ABANDONED")
    assert [(line.token, line.status) for line in settlement.logs] == [("good", "sent"), ("bad", "unknown")]


class _Silent:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = asyncio.Event()
        self._heard = asyncio.Event()

    async def until_asked(self, times: int) -> None:
        while self.asked < times:
            self._heard.clear()
            await self._heard.wait()

    async def send(self, outgoing: Outgoing) -> Outcome:
        outgoing.make_body()
        self.asked += 1
        self._heard.set()
        await self.answers.wait()
        return ACCEPTED


async def test_devices_without_number_do_not_all_wait_at_once() -> None:
    sender = _Silent()
    attempts = _attempts(sender, max_in_flight="8")
    pushes = [_push(*(f"{n}-{device}" for device in range(100))) for n in range(3)]
    sending = [asyncio.create_task(attempts.attempt(one, elapsed())) for one in pushes]
    await sender.until_asked(7)  # of eight places one is kept for high priority
    assert len(asyncio.all_tasks()) == 1 + 3 + 2 * 8
    urgent = asyncio.create_task(attempts.attempt(_push("a", "b", priority="high"), elapsed()))
    await sender.until_asked(8)
    sender.answers.set()
    for settlement in [*await asyncio.gather(*sending), await urgent]:
        assert settlement.decision.status is Status.SENT
        assert {line.status for line in settlement.logs} == {"sent"}
    assert sender.asked == 3 * 100 + 2


async def test_who_is_cancelled_while_most_devices_wait_gives_the_push_back() -> None:
    sender = _Silent()
    attempts = _attempts(sender, max_in_flight="8")
    task = asyncio.create_task(attempts.attempt(_push(*(f"{device}" for device in range(100))), elapsed()))
    await sender.until_asked(7)
    task.cancel()
    settlement = await task
    assert (settlement.decision.status, len(settlement.logs)) == (Status.PENDING, 7)
    sender.answers.set()
    again = await attempts.attempt(_push(*(f"{device}" for device in range(100))), elapsed())
    assert again.decision.status is Status.SENT  # no place was lost


class _Refusing:
    """Refuses our configuration until it has been asked so many times, and from then on accepts all."""

    def __init__(self, times: int) -> None:
        self.asked = 0
        self._times = times

    async def send(self, outgoing: Outgoing) -> Outcome:
        outgoing.make_body()
        self.asked += 1
        await asyncio.sleep(0)
        return REFUSED if self.asked <= self._times else ACCEPTED


class _NotFound:
    """Answers 404 without details to pushes; a question gets an answer of its own."""

    def __init__(self, answer: Outcome) -> None:
        self.questions = 0
        self._answer = answer

    async def send(self, outgoing: Outgoing) -> Outcome:
        is_question = b'"validate_only":true' in outgoing.make_body()
        await asyncio.sleep(0)
        if not is_question:
            return NOT_FOUND
        self.questions += 1
        return self._answer


NOT_FOUND = Outcome(
    Disposition.PAUSE, "NOT_FOUND", "no such project or URL", 404, uses_try=False, is_unclear=True
)


async def test_a_404_without_details_is_the_pushs_own_if_fcm_accepts_a_question() -> None:
    """FCM answered so to single tokens for days, in March 2021."""
    sender, health = _NotFound(ACCEPTED), FcmHealth(after_losses(0, 1000, 0.0))
    attempts = _attempts(sender, health)
    settlements = await asyncio.gather(
        *(attempts.attempt(_push(*(f"phone-{n}-{one}" for one in range(3))), elapsed()) for n in range(10))
    )
    for settlement in settlements:
        decision = settlement.decision
        assert (decision.status, decision.code, decision.uses_try) == (Status.FAILED, "NOT_FOUND", True)
        assert len(settlement.logs) == 3  # one device says nothing about the others
        assert settlement.dead_tokens == []
    assert (health.reason, sender.questions) == (None, 1)


@pytest.mark.parametrize(
    "answer", [NOT_FOUND, REFUSED, Outcome(Disposition.RETRY, "TIMEOUT", "no answer", ambiguous=True)]
)
async def test_a_404_without_details_pauses_if_a_question_is_not_accepted(answer: Outcome) -> None:
    sender, health = _NotFound(answer), FcmHealth(after_losses(0, 1000, 0.0))
    attempts = _attempts(sender, health)
    settlements = [await attempts.attempt(_push(f"phone-{n}"), elapsed()) for n in range(3)]
    assert {(each.decision.status, each.decision.uses_try) for each in settlements} == {
        (Status.PENDING, False)
    }
    assert health.reason is not None
    assert sender.questions == 1


class _Blaming:
    """Calls every token invalid."""

    async def send(self, outgoing: Outgoing) -> Outcome:
        outgoing.make_body()
        return Outcome(Disposition.DROP_TARGET, "INVALID_ARGUMENT", "no registration token", 400)


@pytest.mark.parametrize(
    ("platform", "blamed"), [("ios", False), (None, False), ("android", True), ("web", True)]
)
async def test_a_token_is_not_blamed_for_a_message_that_shows_nothing(
    platform: str | None, blamed: bool
) -> None:
    for shown, is_blamed in (('{"badge": 1}', blamed), ('{"alert": "A"}', True)):
        to = dataclasses.replace(
            _push("phone"),
            recipients=[("phone", platform)],
            title=None,
            body=None,
            options=f'{{"apns": {{"payload": {{"aps": {shown}}}}}}}',
        )
        settlement = await _attempts(_Blaming()).attempt(to, elapsed())
        assert settlement.decision.status is Status.DEAD
        assert settlement.dead_tokens == ([("phone", "INVALID_ARGUMENT")] if is_blamed else [])


async def test_while_everything_is_paused_a_push_with_many_devices_is_one_request() -> None:
    sender, health = _Refusing(1), _paused()
    for priority in ("normal", "high"):
        sender.asked = 0
        devices = (str(n) for n in range(5000))
        settlement = await _attempts(sender, health).attempt(_push(*devices, priority=priority), elapsed())
        assert (sender.asked, len(settlement.logs)) == (1, 1)
        decision = settlement.decision
        assert (decision.status, decision.code, decision.uses_try) == (
            Status.PENDING,
            "PERMISSION_DENIED",
            False,
        )


async def test_when_that_request_is_accepted_the_other_devices_follow_at_once() -> None:
    sender, health = _Refusing(0), _paused()
    settlement = await _attempts(sender, health).attempt(_push("a", "b", "c"), elapsed())
    assert (sender.asked, settlement.decision.status, health.reason) == (3, Status.SENT, None)


async def test_that_request_goes_to_a_platform_that_is_not_held_back() -> None:
    sender, health = _Refusing(0), _paused()
    for n in range(3):
        phone = Target(TargetKind.TOKEN, f"iphone-{n}", "ios")
        health.judge(push(id=uuid4()), phone, NO_APNS, time.monotonic(), time.monotonic())
    health.judge(push(id=uuid4()), Target(TargetKind.TOKEN, "t"), REFUSED, time.monotonic(), time.monotonic())
    to = push(device_token=None, user_id=UUID(int=2), recipients=[("a", "ios"), ("b", "android")])
    settlement = await _attempts(sender, health).attempt(to, elapsed())
    assert ([line.token for line in settlement.logs], settlement.decision.code) == (["b"], "PLATFORM_PAUSED")


async def test_when_everything_is_paused_the_devices_whose_turn_has_not_come_are_not_sent_to() -> None:
    sender = _Refusing(5000)
    for priority in ("normal", "high"):
        sender.asked = 0
        devices = (str(n) for n in range(5000))
        attempts = _attempts(sender, max_in_flight="8")
        settlement = await attempts.attempt(_push(*devices, priority=priority), elapsed())
        assert sender.asked <= 8
        assert (settlement.decision.status, len(settlement.logs)) == (Status.PENDING, sender.asked)


class _RefusesIphones:
    """Accepts what goes to Android, and refuses iPhones as if the key for APNs were wrong, until it is mended."""

    def __init__(self, of_iphones: Outcome = NO_APNS) -> None:
        self.of_iphones = of_iphones
        self.asked: list[str] = []

    async def send(self, outgoing: Outgoing) -> Outcome:
        token = json.loads(outgoing.make_body())["message"]["token"]
        self.asked.append(token)
        await asyncio.sleep(0)
        return self.of_iphones if token.startswith("i") else ACCEPTED


def _to_phones(iphones: int, androids: int, attempt: int = 1) -> Push:
    devices = [(f"i{n}", "ios") for n in range(iphones)] + [(f"a{n}", "android") for n in range(androids)]
    return push(device_token=None, user_id=UUID(int=2), recipients=devices, attempt=attempt)


async def test_a_push_that_was_refused_begins_with_one_request_for_each_platform() -> None:
    """It has 5,000 devices, and its user is the only one that is refused."""
    sender = _RefusesIphones()
    attempts = _attempts(sender, max_in_flight="8")
    settlement = await attempts.attempt(_to_phones(5000, 10), elapsed())
    assert (
        sum(token.startswith("i") for token in sender.asked) <= 8
    )  # what was under way at the first refusals
    assert sum(token.startswith("a") for token in sender.asked) == 10
    assert (settlement.decision.status, settlement.decision.code) == (
        Status.PENDING,
        "THIRD_PARTY_AUTH_ERROR",
    )
    for attempt in (2, 3):
        sender.asked.clear()
        settlement = await attempts.attempt(_to_phones(5000, 2, attempt), elapsed())
        assert sorted(token[0] for token in sender.asked) == ["a", "a", "i"]
        assert settlement.requests == 3
    sender.of_iphones = ACCEPTED
    settlement = await attempts.attempt(_to_phones(5000, 0, 4), elapsed())
    assert (settlement.decision.status, settlement.requests) == (Status.SENT, 5000)


async def test_a_push_that_is_refused_whatever_the_device_is_one_request_the_next_time() -> None:
    sender, health = _RefusesIphones(REFUSED), _accepting()
    attempts = _attempts(sender, health, max_in_flight="8")
    await attempts.attempt(_to_phones(5000, 0), elapsed())
    assert len(sender.asked) <= 8
    sender.asked.clear()
    settlement = await attempts.attempt(_to_phones(5000, 0, 2), elapsed())
    assert (len(sender.asked), len(settlement.logs), health.reason) == (1, 1, None)


async def test_two_devices_that_are_refused_keep_no_other_of_their_platform_from_its_push() -> None:
    class Sandbox(_RefusesIphones):
        async def send(self, outgoing: Outgoing) -> Outcome:
            outcome = await super().send(outgoing)
            return outcome if self.asked[-1] in ("i0", "i1") else ACCEPTED

    attempts = _attempts(Sandbox(), max_in_flight="1")
    settlement = await attempts.attempt(_to_phones(10, 0), elapsed())
    assert [line.status for line in settlement.logs].count("sent") == 8


async def test_when_a_platform_may_be_tried_again_one_device_tries_it() -> None:
    sender, health, now = _RefusesIphones(), _accepting(), time.monotonic()
    for n in range(3):
        phone = Target(TargetKind.TOKEN, f"iphone-{n}", "ios")
        health.judge(push(id=uuid4()), phone, NO_APNS, now - 61.0, now - 60.5)
    settlement = await _attempts(sender, health).attempt(_to_phones(5000, 1), elapsed())
    assert sorted(sender.asked) == ["a0", "i0"]
    assert settlement.requests == 2


async def test_without_an_access_token_no_second_device_is_tried_while_everything_is_paused() -> None:
    class NoToken:
        asked = 0

        async def send(self, outgoing: Outgoing) -> Outcome:
            self.asked += 1
            return Outcome(Disposition.PAUSE, "OAUTH_INVALID_GRANT", "the key is not valid", uses_try=False)

    settlement = await _attempts(sender := NoToken(), _paused()).attempt(_to_phones(100, 100), elapsed())
    assert (sender.asked, settlement.requests) == (1, 0)


def _accepting() -> FcmHealth:
    """FCM has just accepted a push."""
    health = FcmHealth(after_losses(0, 1000, time.monotonic()))
    health.judge(
        push(id=uuid4()), Target(TargetKind.TOKEN, "t"), ACCEPTED, time.monotonic(), time.monotonic()
    )
    return health


def _paused() -> FcmHealth:
    """Everything has just been paused."""
    health = FcmHealth(after_losses(0, 1000, time.monotonic()))
    health.judge(push(id=uuid4()), Target(TargetKind.TOKEN, "t"), REFUSED, time.monotonic(), time.monotonic())
    assert health.reason is not None
    return health


class _Late:
    """Has an access token and a connection only after a while, and then perhaps another token after another while.

    The time passes on a clock of its own, ``elapsed``.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
        self.bodies: list[bytes] = []
        self.now = elapsed()
        self._seconds = seconds
        monkeypatch.setattr("listener.sending.attempt.elapsed", lambda: self.now)

    async def send(self, outgoing: Outgoing) -> Outcome:
        for each in self._seconds:
            await asyncio.sleep(0)
            self.now += each
            self.bodies.append(outgoing.make_body())
        return ACCEPTED


async def test_a_push_that_expires_while_there_is_no_token_or_connection_is_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late, sender = push(expires_in=0.5), _Late(monkeypatch, 0.6)
    settlement = await _attempts(sender).attempt(late, sender.now)
    decision = settlement.decision
    assert (decision.status, decision.code, decision.uses_try) == (Status.EXPIRED, "EXPIRED", False)
    assert (sender.bodies, settlement.logs, settlement.requests) == ([], [], 0)


async def test_nor_is_it_sent_a_second_time_after_a_token_was_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late, sender = push(expires_in=0.5), _Late(monkeypatch, 0.0, 0.6)
    settlement = await _attempts(sender).attempt(late, sender.now)
    assert (settlement.decision.status, settlement.decision.code) == (Status.EXPIRED, "EXPIRED")
    assert len(sender.bodies) == 1
    assert [line.details["code"] for line in settlement.logs] == ["EXPIRED"]


async def test_the_time_to_live_is_that_of_the_moment_of_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    long_lived, sender = push(expires_in=1000.0), _Late(monkeypatch, 0.5, 1.0)
    await _attempts(sender).attempt(long_lived, sender.now)
    assert [json.loads(body)["message"]["android"]["ttl"] for body in sender.bodies] == ["999s", "998s"]


async def test_a_request_that_would_outlive_the_lease_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    sender = _Late(monkeypatch, 0.02)
    attempts = _attempts(sender, lease="100", fcm_request_timeout="11")
    for held, status in ((70.0, Status.SENT), (83.99, Status.PENDING), (85.0, Status.PENDING)):
        settlement = await attempts.attempt(push(), sender.now - held)
        assert (settlement.decision.status, settlement.decision.uses_try) == (status, False)
    assert len(sender.bodies) == 1


async def test_who_is_cancelled_before_the_request_was_written_has_sent_nothing() -> None:
    class Unconnected:
        async def send(self, outgoing: Outgoing) -> Outcome:
            await asyncio.Event().wait()
            return ACCEPTED

    task = asyncio.create_task(_attempts(Unconnected()).attempt(push(), elapsed()))
    await asyncio.sleep(0)
    task.cancel()
    settlement = await task
    assert (settlement.decision.status, settlement.decision.code) == (Status.PENDING, None)
    assert settlement.logs == []


async def test_the_transport_learns_of_high_priority() -> None:
    heard: list[bool] = []

    class Hears:
        async def send(self, outgoing: Outgoing) -> Outcome:
            heard.append(outgoing.is_high)
            return ACCEPTED

    for priority in ("high", "normal", None):
        await _attempts(Hears()).attempt(push(priority=priority), elapsed())
    assert heard == [True, False, False]


class _Quotes:
    """Refuses a request and repeats the token that it was for, as FCM might."""

    async def send(self, outgoing: Outgoing) -> Outcome:
        token = json.loads(outgoing.make_body())["message"]["token"]
        reason = f'FCM is in trouble; FCM says: "no answer from {token}"'
        return Outcome(Disposition.RETRY, "INTERNAL", reason, 500)


async def test_no_reason_names_the_device() -> None:
    """Users read the reasons of their pushes, when the device may be another user's."""
    token = "device-of-somebody-else"
    settlement = await _attempts(_Quotes()).attempt(_push(token), elapsed())
    assert settlement.decision.reason == 'FCM is in trouble; FCM says: "no answer from [hidden]"'
    assert [(line.token, line.details["reason"]) for line in settlement.logs] == [
        (token, settlement.decision.reason)
    ]


class _FaultyHealth(FcmHealth):
    """Fails whenever a settlement is made."""

    @property
    def in_doubt(self) -> bool:
        raise TypeError


@pytest.mark.parametrize(
    ("retry_count", "accepted_before", "status"),
    [(0, 0, Status.FAILED), (4, 0, Status.DEAD), (4, 1, Status.SENT)],
)
def test_a_fault_in_what_makes_settlements_uses_tries_too(
    retry_count: int, accepted_before: int, status: Status
) -> None:
    one = dataclasses.replace(_push("good"), retry_count=retry_count, accepted_before=accepted_before)
    attempts = _attempts(None, _FaultyHealth(after_losses(0, 1000, time.monotonic())))
    decision = attempts.after_exception(one, elapsed(), _raised(ValueError("S3cr3t"))).decision
    assert (decision.status, decision.code, decision.uses_try) == (status, "INTERNAL_ERROR", True)
    assert (decision.delay is None) == (status is not Status.FAILED)
    assert "(ValueError)" in (decision.reason or "")
    assert "S3cr3t" not in (decision.reason or "")


def _raised(error: Exception) -> Exception:
    """With the place where it was raised."""
    try:
        raise error
    except Exception as caught:
        return caught


def _attempts(sender: object, health: FcmHealth | None = None, **settings: str) -> Attempts:
    loaded = config.load(database_url="postgresql://nobody@localhost/none", **settings)
    health = health or FcmHealth(after_losses(0, loaded.max_in_flight, time.monotonic()))
    metrics = Metrics()
    quota = SharedQuota(cast(Workers, None), Quota(1_000_000, 0.0, time.monotonic()), metrics)
    return Attempts(
        cast(Sender, sender),
        loaded,
        metrics,
        health,
        quota,
        PauseReport(health, LookSignal(), metrics),
        Trail(Tracing(), 1),
        FcmQuestion(cast(Sender, sender), health, metrics),
    )


def _push(*devices: str, priority: str | None = None) -> Push:
    """To a user with these devices."""
    recipients = [(device, "android") for device in devices]
    return push(device_token=None, user_id=UUID(int=2), recipients=recipients, priority=priority)


@pytest.mark.parametrize(("seconds", "status"), [(0.0, Status.SENT), (3600.0, Status.EXPIRED)])
async def test_a_push_expires_also_while_the_machine_is_suspended(
    monkeypatch: pytest.MonkeyPatch, seconds: float, status: Status
) -> None:
    """CLOCK_MONOTONIC stands still meanwhile; only the clock of ``elapsed`` shows it."""
    to = dataclasses.replace(_push("good"), expires_in=600.0)
    claimed_at = elapsed()
    monkeypatch.setattr("listener.sending.attempt.elapsed", lambda: claimed_at + seconds)
    settlement = await _attempts(_Broken()).attempt(to, claimed_at)
    assert settlement.decision.status is status


async def test_nothing_is_sent_with_a_lease_that_ended_while_the_machine_was_suspended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claimed_at = elapsed()
    monkeypatch.setattr("listener.sending.attempt.elapsed", lambda: claimed_at + 3600.0)
    settlement = await _attempts(_Broken()).attempt(_push("good"), claimed_at)
    assert (settlement.decision.status, settlement.logs) == (Status.PENDING, [])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such clock")
def test_the_clock_counts_what_a_suspend_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {time.CLOCK_BOOTTIME: 5000.0, time.CLOCK_MONOTONIC: 10.0}
    monkeypatch.setattr(time, "clock_gettime", times.__getitem__)
    assert clock.elapsed() == 5000.0
