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
from listener.limits.health import FcmHealth
from listener.limits.quota import Quota
from listener.limits.shared_quota import SharedQuota
from listener.limits.slow_start import after_losses
from listener.metrics import Metrics
from listener.postgres.workers import Workers
from listener.push import Push, Status, Target, TargetKind
from listener.sending.attempt import Attempts
from listener.sending.pause_report import PauseReport
from listener.wakeup.look_signal import LookSignal
from tests.support.pushes import push

ACCEPTED = Outcome(Disposition.ACCEPTED, "OK", "accepted by FCM", 200, message_id="projects/p/messages/1")
REFUSED = Outcome(Disposition.PAUSE, "PERMISSION_DENIED", "may not send", 403, uses_try=False)
NO_APNS = Outcome(Disposition.PAUSE_PLATFORM, "THIRD_PARTY_AUTH_ERROR", "APNs", 401, uses_try=False)


class _Broken:
    """Accepts what goes to the device "good"; the request to any other one is cancelled by nobody that is known."""

    async def send(self, body: bytes) -> Outcome:
        if b'"good"' in body:
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

    async def send(self, body: bytes) -> Outcome:
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

    async def send(self, body: bytes) -> Outcome:
        self.asked += 1
        await asyncio.sleep(0)
        return REFUSED if self.asked <= self._times else ACCEPTED


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


def _paused() -> FcmHealth:
    """Everything has just been paused."""
    health = FcmHealth(after_losses(0, 1000, time.monotonic()))
    health.judge(push(id=uuid4()), Target(TargetKind.TOKEN, "t"), REFUSED, time.monotonic(), time.monotonic())
    assert health.reason is not None
    return health


class _Quotes:
    """Refuses a request and repeats the token that it was for, as FCM might."""

    async def send(self, body: bytes) -> Outcome:
        token = json.loads(body)["message"]["token"]
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


def _attempts(sender: object, health: FcmHealth | None = None, **settings: str) -> Attempts:
    loaded = config.load(database_url="postgresql://nobody@localhost/none", **settings)
    health = health or FcmHealth(after_losses(0, loaded.max_in_flight, time.monotonic()))
    metrics = Metrics()
    quota = SharedQuota(cast(Workers, None), Quota(1_000_000, 0.0, time.monotonic()), metrics)
    return Attempts(
        cast(Sender, sender), loaded, metrics, health, quota, PauseReport(health, LookSignal(), metrics)
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
