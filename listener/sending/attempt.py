"""One attempt at one row: the requests for all of its targets, and the result."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import time
import traceback
from dataclasses import dataclass, replace

import structlog

from listener.clock import elapsed
from listener.config import Settings
from listener.fcm.blame import in_view_of
from listener.fcm.fault import TooLate
from listener.fcm.message import Prepared, prepare, targets
from listener.fcm.outcome import Disposition, Outcome, refused_alone
from listener.fcm.sender import Sender
from listener.fcm.transports.base import Outgoing
from listener.limits.claim_budget import reserved_for_high
from listener.limits.health import FcmHealth
from listener.limits.places import Places
from listener.limits.retry_policy import RetryPolicy
from listener.limits.shared_quota import SharedQuota
from listener.metrics.labels import platform_of
from listener.metrics.own import Metrics
from listener.push import (
    EXPIRED_REASON,
    BadPush,
    Decision,
    LogLine,
    Push,
    Settlement,
    Status,
    Target,
    TargetKind,
)
from listener.sending.fcm_question import FcmQuestion
from listener.sending.pause_report import PauseReport
from listener.sending.retry import decide, sent
from listener.sending.trail import Trail

log = structlog.get_logger(__name__)

# A push during which this many workers have died is not sent again.
_MOST_LOST_CLAIMS = 10

# After this many claims of one push, the absence of FCM no longer excuses its failures.
_MOST_CLAIMS_IN_OUTAGE = 500

# The part of the lease that is kept for writing the result.
_KEPT_OF_LEASE_S = 5.0

_FAULT_OF_OURS = "INTERNAL_ERROR"

_EXPIRED = Outcome(Disposition.EXPIRED, "EXPIRED", EXPIRED_REASON)
# After this many refused requests for one platform, an attempt sends no more to it. Two are not enough: some users have
# two devices with an app built for Apple's test environment.
_ENOUGH_REFUSED = 3

_NOT_TRIED = Outcome(Disposition.RETRY, "NOT_TRIED", "not tried in this attempt", uses_try=False)


@dataclass(slots=True)
class _Request:
    """One target in this attempt."""

    target: Target
    is_first: bool
    """Whether this is the first of all requests for its push."""
    started: float | None = None
    """When its latest request was written; None: none was."""
    seconds: float = 0.0
    outcome: Outcome | None = None
    held_back: float = 0.0
    """Seconds for which nothing is sent to its platform."""


@dataclass(slots=True)
class _Attempt:
    """One attempt at one push."""

    push: Push
    prepared: Prepared
    claimed_at: float
    targets: int
    is_refused: bool = False
    """Whether FCM has refused one of its requests for a reason that holds for every device."""
    refused: dict[str | None, int] | None = None
    """Requests that failed because Apple or the web push service takes nothing from FCM, by platform."""
    accepted: int = 0
    """Requests that FCM has accepted."""

    def has_expired(self) -> bool:
        """Whether the push has expired."""
        return _has_expired(self.push, self.claimed_at)

    def note_failure(self, one: _Request, outcome: Outcome) -> None:
        """FCM has not accepted one of its requests."""
        if outcome.disposition is Disposition.PAUSE:
            self.is_refused = True
        elif outcome.disposition is Disposition.PAUSE_PLATFORM:
            self.refused = self.refused or {}
            self.refused[one.target.platform] = self.refused.get(one.target.platform, 0) + 1

    def is_hopeless(self, one: _Request) -> bool:
        """Whether a request would be refused as others of this attempt were."""
        refused = self.refused is not None and self.refused.get(one.target.platform, 0) >= _ENOUGH_REFUSED
        return self.is_refused or refused


class Attempts:
    """Sends claimed rows, as far as the health of FCM allows it.

    Args:
        quota: learns of each 429.
        pauses: logs when sending is paused or goes on.
        trail: records what happens to each push.
        question: finds out whether FCM or the push is at fault.
    """

    def __init__(
        self,
        sender: Sender,
        settings: Settings,
        metrics: Metrics,
        health: FcmHealth,
        quota: SharedQuota,
        pauses: PauseReport,
        trail: Trail,
        question: FcmQuestion,
    ) -> None:
        self._sender = sender
        self._quota = quota
        self._pauses = pauses
        self._trail = trail
        self._question = question
        self._metrics = metrics
        self._health = health
        self._policy = RetryPolicy.of(settings)
        self._rng = random.Random()  # noqa: S311  # jitter, not secrecy
        most = settings.max_in_flight
        self._places = Places(most, most - reserved_for_high(most))
        # A request that waits for its turn takes memory, so a push with many devices gets a bounded number of tasks.
        self._tasks_of_normal = asyncio.Semaphore(2 * most)
        self._abandoned = Outcome(
            Disposition.RETRY,
            "ABANDONED",
            "abandoned at shutdown while the request was under way; it may have been delivered",
            delay=self._policy.floor,
            ambiguous=True,
            uses_try=False,
        )
        self._lease = settings.lease
        # A request that is written later than this after the claim might outlive the lease.
        self._latest_start = settings.lease - settings.fcm_request_timeout - _KEPT_OF_LEASE_S

    async def attempt(self, push: Push, claimed_at: float) -> Settlement:
        """Sends one row to all of its targets.

        When cancelled, it returns at once with the answers so far: those devices do not get the push again, and the row
        goes back into the queue for the others. ``claimed_at``: by ``clock.elapsed``, before the claim.
        """
        if push.lost_claims >= _MOST_LOST_CLAIMS:
            return self._unsendable(push, claimed_at, _quarantine(push))
        if push.expires_in is not None and _has_expired(push, claimed_at):
            return self._decided(push, claimed_at, [_EXPIRED], [])
        try:
            prepared = prepare(push)
            requests = [
                _Request(target, push.attempt == 1 and n == 0) for n, target in enumerate(targets(push))
            ]
        except BadPush as bad:
            return self._unsendable(push, claimed_at, bad)
        attempt = _Attempt(push, prepared, claimed_at, len(requests))
        try:
            if attempt.targets == 1:
                await self._send(attempt, requests[0], while_paused=True)
            else:
                await self._send_all(attempt, requests)
        except asyncio.CancelledError:
            pass  # the settlement says how far the attempt came
        if attempt.accepted == attempt.targets > 0:
            return self._settlement(push, sent([one.outcome for one in requests]), requests)
        return await self._not_accepted(attempt, requests)

    async def _not_accepted(self, attempt: _Attempt, requests: list[_Request]) -> Settlement:
        """The settlement of an attempt that FCM has not accepted for all targets."""
        push, claimed_at = attempt.push, attempt.claimed_at
        for one in requests:
            if one.outcome is None and one.started is not None:
                one.seconds = time.monotonic() - one.started
                one.outcome = self._abandoned
        has_expired = attempt.has_expired()
        if requests and not has_expired and not any(one.outcome or one.held_back for one in requests):
            return untouched(push)
        outcomes = [one.outcome or (_EXPIRED if has_expired else _not_tried(one)) for one in requests]
        if self._health.fails:
            self._question.ask()
        elif push.retry_count + 1 >= self._policy.max_tries and any(_counts(outcome) for outcome in outcomes):
            with contextlib.suppress(asyncio.CancelledError):
                await self._check_presence(claimed_at)
        return self._decided(push, claimed_at, outcomes, requests)

    def after_exception(self, push: Push, claimed_at: float, error: BaseException) -> Settlement:
        """The settlement after an exception: a fault of this service neither loses a row nor sends it for ever."""
        outcome = self._fault_of_ours(push, error)
        try:
            return self._decided(push, claimed_at, [outcome], [])
        except Exception as again:  # the code that makes settlements may be at fault
            self._fault_of_ours(push, again)
            return Settlement(push.id, push.attempt, self._after_fault_of_ours(push, error))

    def _after_fault_of_ours(self, push: Push, error: BaseException) -> Decision:
        """What becomes of a row after such a fault. Uses nothing but the row and the settings."""
        tries, reason = push.retry_count + 1, _reason_of_ours(error)
        if tries < self._policy.max_tries:
            return Decision(Status.FAILED, self._policy.longest(tries), True, _FAULT_OF_OURS, reason)
        status = Status.SENT if push.accepted_before else Status.DEAD
        return Decision(status, None, True, _FAULT_OF_OURS, f"given up after {tries} tries: {reason}")

    def _fault_of_ours(self, push: Push, error: BaseException) -> Outcome:
        # The text of an exception may quote a payload; the place where it was raised does not.
        where = traceback.extract_tb(error.__traceback__)[-1]
        log.error(
            "attempt failed",
            push_id=str(push.id),
            error=type(error).__name__,
            at=f"{where.filename}:{where.lineno}",
        )
        return Outcome(Disposition.RETRY, _FAULT_OF_OURS, _reason_of_ours(error), delay=self._policy.floor)

    async def _send_all(self, attempt: _Attempt, requests: list[_Request]) -> None:
        if self._health.reason is not None or self._health.fails or self._health.was_refused(attempt.push):
            requests = await self._probe(attempt, requests)
        async with asyncio.TaskGroup() as group:
            for one in requests:
                if attempt.push.priority == "high":
                    group.create_task(self._send(attempt, one))
                    continue
                await self._tasks_of_normal.acquire()
                task = group.create_task(self._send(attempt, one))
                task.add_done_callback(lambda _: self._tasks_of_normal.release())

    async def _probe(self, attempt: _Attempt, requests: list[_Request]) -> list[_Request]:
        """Sends one request for each platform, to see if FCM accepts it; returns the requests that may follow.

        While everything is paused, it sends only one request altogether. It tries the devices in random order, so that
        a bad one does not keep the others waiting for ever.
        """
        platforms: dict[str | None, list[_Request]] = {}
        for one in self._rng.sample(requests, len(requests)):
            platforms.setdefault(one.target.platform, []).append(one)
        follow: list[_Request] = []
        for devices in platforms.values():
            for n, one in enumerate(devices):
                await self._send(attempt, one, while_paused=True)
                if one.held_back:
                    continue
                if self._health.reason is not None:
                    return []
                if not self._is_refused(one):
                    follow += devices[n + 1 :]
                break
        return follow

    def _is_refused(self, one: _Request) -> bool:
        if one.outcome is None:
            return True
        again = self._health.fails and one.outcome.disposition is Disposition.RETRY
        return again or one.outcome.disposition in (Disposition.PAUSE, Disposition.PAUSE_PLATFORM)

    async def _send(self, attempt: _Attempt, one: _Request, *, while_paused: bool = False) -> None:
        is_high = attempt.push.priority == "high"
        if not self._places.take(is_high=is_high):  # one push may have a thousand devices
            await self._places.wait(is_high=is_high)
        try:
            if self._health.reason is None or while_paused:
                await self._send_now(attempt, one)
            # else: while everything is paused, a push with many devices is one request
        finally:
            self._places.give_back(is_high=is_high)

    async def _send_now(self, attempt: _Attempt, one: _Request) -> None:
        if attempt.is_hopeless(one):
            return
        push = attempt.push
        began = time.monotonic()
        try:
            self._check_time(attempt)
            one.held_back = self._health.platform_wait(one.target.platform, began)
            if one.held_back:
                return
            body = functools.partial(self._body, attempt, one)
            one.outcome = outcome = await self._sender.send(
                Outgoing(body, push.expires_in is not None, push.priority == "high")
            )
            if outcome.disposition is not Disposition.ACCEPTED:
                outcome = await self._clarified(outcome, attempt.claimed_at)
        except TooLate:
            if one.started is not None:  # FCM has refused the access token of the first request
                one.outcome = _EXPIRED if attempt.has_expired() else _NOT_TRIED
            return
        except Exception as error:
            # This must not lose the answers to the other devices, and it says nothing about FCM.
            one.outcome = self._fault_of_ours(push, error)
            answered = time.monotonic()
        else:
            answered = time.monotonic()
            asked = began if one.started is None else one.started
            if outcome.disposition is Disposition.ACCEPTED:
                self._note_accepted(attempt, one, outcome, asked, answered)
            else:
                self._note_failed(attempt, one, outcome, asked, answered)
        one.seconds = answered - began
        if attempt.targets > 1:
            # A push with a thousand devices may take as long as the lease. The dispatcher may wait for free places
            # meanwhile, and so not note any progress.
            self._metrics.progress.set_to_current_time()
        if self._trail.is_on:
            self._trail.answered(push, one.target, one.outcome, began, answered)

    def _note_accepted(
        self, attempt: _Attempt, one: _Request, outcome: Outcome, asked: float, answered: float
    ) -> None:
        push = attempt.push
        self._health.judge(push, one.target, outcome, asked, answered)
        attempt.accepted += 1
        if attempt.accepted == 1 and push.accepted_before == 0:
            since_due = push.waited + elapsed() - attempt.claimed_at
            self._metrics.due_to_accepted.observe(max(0.0, since_due), push.priority or "normal")

    def _note_failed(
        self, attempt: _Attempt, one: _Request, outcome: Outcome, asked: float, answered: float
    ) -> None:
        if outcome.limit is not None:
            self._quota.refused(outcome.limit, asked)
        outcome = in_view_of(_without_token(outcome, one.target), attempt.prepared, one.target)
        one.outcome = self._health.judge(attempt.push, one.target, outcome, asked, answered)
        attempt.note_failure(one, one.outcome)

    def _body(self, attempt: _Attempt, one: _Request) -> bytes:
        """The body of a request that is written now."""
        push = attempt.push
        held = self._check_time(attempt)
        body = attempt.prepared.encode(
            one.target, None if push.expires_in is None else push.expires_in - held
        )
        if one.is_first and one.started is None:
            self._metrics.insert_to_send.observe(max(0.0, push.waited + held), push.priority or "normal")
        one.started = time.monotonic()
        return body

    def _check_time(self, attempt: _Attempt) -> float:
        """The seconds since the claim.

        Raises TooLate if the push has expired, or if a request that is written now might outlive the lease.
        """
        held = elapsed() - attempt.claimed_at
        expires_in = attempt.push.expires_in
        if held > self._latest_start or (expires_in is not None and held >= expires_in):
            raise TooLate
        return held

    async def _clarified(self, outcome: Outcome, claimed_at: float) -> Outcome:
        """Finds out by a question whether an unclear refusal concerns every push or only this one."""
        if not outcome.is_unclear:
            return outcome
        if not self._health.accepts_questions(time.monotonic()):
            await self._wait_for_question(claimed_at)
        return refused_alone(outcome) if self._health.accepts_questions(time.monotonic()) else outcome

    async def _check_presence(self, claimed_at: float) -> None:
        """Finds out whether the push or FCM is at fault, before the push is given up.

        If no answer to another push has shown that lately, it asks FCM a question.
        """
        if self._health.is_away(time.monotonic()):
            await self._wait_for_question(claimed_at)

    async def _wait_for_question(self, claimed_at: float) -> None:
        """Waits for the answer to a question, but not past the lease."""
        until = claimed_at + self._lease - _KEPT_OF_LEASE_S
        await self._question.wait_for_health(max(0.0, until - elapsed()))

    def _patient(self, push: Push, outcome: Outcome) -> Outcome:
        """Makes a failure that uses no try wait longer each time all the same, so that other pushes get a turn."""
        if outcome.disposition is not Disposition.RETRY or outcome.uses_try:
            return outcome
        return replace(outcome, delay=max(outcome.delay, self._policy.longest(push.attempt)))

    def _unsendable(self, push: Push, claimed_at: float, bad: BadPush) -> Settlement:
        self._metrics.invalid.labels(bad.code).inc()
        return self._decided(push, claimed_at, [Outcome(Disposition.DROP_MESSAGE, bad.code, str(bad))], [])

    def _decided(
        self, push: Push, claimed_at: float, outcomes: list[Outcome], requests: list[_Request]
    ) -> Settlement:
        if self._health.in_doubt:
            outcomes = [self._patient(push, outcome) for outcome in outcomes]
        decision = decide(
            outcomes,
            accepted_before=push.accepted_before,
            retry_count=push.retry_count,
            expires_in=_life_left(push, claimed_at),
            policy=self._policy,
            rng=self._rng,
            fcm_away=push.attempt < _MOST_CLAIMS_IN_OUTAGE and self._health.is_away(time.monotonic()),
        )
        if decision.status is Status.DEAD:
            log.warning("push dead", push_id=str(push.id), code=decision.code)
        return self._settlement(push, decision, requests)

    def _settlement(self, push: Push, decision: Decision, requests: list[_Request]) -> Settlement:
        settlement = Settlement(push.id, push.attempt, decision)
        for one in requests:
            if one.started is not None:
                settlement.requests += 1
            outcome = one.outcome
            if outcome is None:
                continue
            settlement.logs.append(_log_line(push, one, outcome))
            self._metrics.sends.add(
                outcome.disposition, outcome.code, _label(one.target.kind, one.target.platform)
            )
            if outcome.disposition is Disposition.DROP_TARGET and one.target.is_device:
                settlement.dead_tokens.append((one.target.value, outcome.code))
        self._pauses.tell()
        return settlement


# A shorter word may occur in any text. An installation id has 22 characters, a registration token more.
_SHORTEST_HIDDEN = 16


def _without_token(outcome: Outcome, target: Target) -> Outcome:
    """The outcome, with a reason that does not quote the registration token.

    FCM's text may quote it. Users read reasons, and by then the device may belong to another user.
    """
    if not target.is_device or len(target.value) < _SHORTEST_HIDDEN:
        return outcome
    if target.value not in outcome.reason:
        return outcome
    return replace(outcome, reason=outcome.reason.replace(target.value, "[hidden]"))


@functools.lru_cache(maxsize=64)  # a view of the application's own may call a platform anything
def _label(kind: TargetKind, platform: str | None) -> str:
    return platform_of(platform) if Target(kind, "", platform).is_device else "topic"


def _counts(outcome: Outcome) -> bool:
    return outcome.disposition is Disposition.RETRY and outcome.uses_try


def _quarantine(push: Push) -> BadPush:
    return BadPush(
        f"quarantined: {push.lost_claims} workers died, or lost their lease, while they held this push; read "
        "their logs before you requeue it",
        code="QUARANTINED",
    )


def _not_tried(one: _Request) -> Outcome:
    if not one.held_back:
        return _NOT_TRIED
    reason = f"waits, because nothing is accepted for platform {one.target.platform} at present"
    return replace(_NOT_TRIED, code="PLATFORM_PAUSED", reason=reason, delay=one.held_back)


def _reason_of_ours(error: BaseException) -> str:
    """The reason without the text of the exception, which may quote a payload."""
    return f"push-listener could not handle this push ({type(error).__name__})"


def untouched(push: Push) -> Settlement:
    """Gives a row back as it was, because nothing has been sent for it."""
    return Settlement(push.id, push.attempt, Decision(Status.PENDING, delay=0.0))


def _life_left(push: Push, claimed_at: float) -> float | None:
    """Seconds until the push expires, counted from what the database said at the claim."""
    return None if push.expires_in is None else push.expires_in - (elapsed() - claimed_at)


def _has_expired(push: Push, claimed_at: float) -> bool:
    return push.expires_in is not None and push.expires_in <= elapsed() - claimed_at


def _log_line(push: Push, one: _Request, outcome: Outcome) -> LogLine:
    details: dict[str, object] = {"attempt": push.attempt, "ms": round(one.seconds * 1000)}
    if outcome.disposition is Disposition.ACCEPTED:
        status = "sent"  # FCM has accepted it; a receipt may follow
        details["message_id"] = outcome.message_id
    else:
        status = "unknown" if outcome.ambiguous else "failed"
        if outcome.http_status is not None:
            details["http_status"] = outcome.http_status
        details |= {"outcome": outcome.disposition.value, "code": outcome.code, "reason": outcome.reason}
    if one.target.is_device:
        return LogLine(one.target.value, status, details)
    details[one.target.kind.value] = one.target.value
    return LogLine(None, status, details)
