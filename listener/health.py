"""What the answers say of FCM and of our configuration, and how much may be sent therefore. Pure.

Three things are told apart. *Refused*: our key, project or permissions are wrong, so nothing is sent but a probe
now and then. *Away*: FCM does not answer, or only with 5xx, so pushes wait without being used up, and it is probed
often; while it answers a question although pushes fail, it may be the pushes, and a few go on being tried, so that
those which would be accepted need not wait behind them. *One platform refused*: the credentials for APNs or web push
are wrong, and the others go on.
"""

from __future__ import annotations

import math
from dataclasses import replace
from enum import StrEnum

from listener.fcm.outcome import Kind, Outcome
from listener.guard import TokenLossGuard
from listener.pause import PauseGate
from listener.push import Target, TargetKind
from listener.ramp import Ramp, after_losses, after_pause

_REFUSED_FIRST_S, _REFUSED_LONGEST_S = 30.0, 300.0
_AWAY_FIRST_S, _AWAY_LONGEST_S = 2.0, 4.0
_AWAY_AFTER_FAILURES = 20
_AWAY_AFTER_S = 60.0
_IN_DOUBT = 8  # pushes at once
_TRUSTED_S = 30.0  # after the answer to a question
_PLATFORM_FIRST_S = 60.0
_PLATFORM_LONGEST_S = 600.0
_NEVER_REFUSED = (-math.inf, 0.0, 0.0)


class Pause(StrEnum):
    """The kinds of pauses, as /readyz tells them, which anybody may read."""

    REFUSED = "FCM refuses our credentials, permissions or project; the log has its words"
    AWAY = "FCM does not answer"
    TOKEN_LOSS = "FCM calls nearly every token dead"  # noqa: S105  # not a secret
    NO_ACCESS_TOKEN = "no access token for FCM can be obtained; the log says why"  # noqa: S105  # not a secret


class FcmHealth:
    """Learns from every answer. Times are monotonic seconds.

    Args:
        ramp: how to begin.
        token_loss_guard: whether to doubt FCM when it calls nearly every token dead.
    """

    def __init__(self, ramp: Ramp, *, token_loss_guard: bool = True) -> None:
        self._ramp = ramp
        self._guard = TokenLossGuard() if token_loss_guard else None
        self._refused = PauseGate(_REFUSED_FIRST_S, _REFUSED_LONGEST_S)
        self._away = PauseGate(_AWAY_FIRST_S, _AWAY_LONGEST_S)
        self._failures = 0  # in a row, without any answer that says something
        self._answered_at = -math.inf
        self._trusted_until = -math.inf
        self._platforms: dict[
            str | None, tuple[float, float, float]
        ] = {}  # refused since, until, and for how long

    @property
    def reason(self) -> str | None:
        """Why sending is paused; None while it is not."""
        return self._refused.reason or self._away.reason

    @property
    def pause_kind(self) -> Pause | None:
        """What kind of pause it is; None while sending is not paused. Says nothing that FCM has said."""
        gate = self._refused if self._refused.reason else self._away
        if gate.reason is None or gate.code is None:
            return None
        if gate.code.startswith("OAUTH_"):  # every fault of the access token
            return Pause.NO_ACCESS_TOKEN
        if gate is self._away:
            return Pause.AWAY
        return Pause.TOKEN_LOSS if gate.code == "TOKEN_LOSS" else Pause.REFUSED

    def judge(self, target: Target, outcome: Outcome, asked: float, now: float) -> Outcome:
        """Learns from the answer to a request made at ``asked``; returns what it means in the light of the others."""
        if self._guard is not None and target.kind is TargetKind.TOKEN:
            outcome = self._guard.judge(outcome)
        if _is_failure(outcome):
            self._failures += 1
            if self.fails:
                if now >= self._trusted_until:
                    away = replace(outcome, kind=Kind.PAUSE, reason=f"FCM is away: {outcome.reason}")
                    self._away.note(away, asked, now)
                outcome = replace(outcome, uses_attempt=False)
        elif outcome.http_status is not None:
            if self.in_doubt:
                self._begin_gently(now)
            self._is_there(outcome, asked, now)
            if self._away.reason is None:  # otherwise it had been asked before FCM went away
                self._failures = 0
        self._note(self._refused, outcome, asked, now)
        if outcome.kind is Kind.PAUSE_PLATFORM:
            outcome = replace(outcome, delay=self._refuse_platform(target.platform, asked, now))
        elif outcome.kind is Kind.ACCEPTED and asked >= self._refused_since(target.platform):
            # Only that: a dead token, say, is told before anybody asks for the credentials.
            self._platforms.pop(target.platform, None)
        return outcome

    def _refuse_platform(self, platform: str | None, asked: float, now: float) -> float:
        """Holds back a platform; returns for how many seconds. Without a name only the push itself can wait."""
        if platform is None:
            return _PLATFORM_FIRST_S
        since, until, length = self._platforms.get(platform, _NEVER_REFUSED)
        if asked >= since:  # not one of those that were under way when it was refused
            length = min(2 * length, _PLATFORM_LONGEST_S) if length else _PLATFORM_FIRST_S
            until = now + length
            self._platforms[platform] = (now, until, length)
        return max(0.0, until - now)

    def _refused_since(self, platform: str | None) -> float:
        return self._platforms.get(platform, _NEVER_REFUSED)[0]

    def platform_wait(self, platform: str | None, now: float) -> float:
        """Seconds for which nothing should be sent to a platform; 0: send."""
        return max(0.0, self._platforms.get(platform, _NEVER_REFUSED)[1] - now)

    def is_away(self, now: float) -> bool:
        """Whether FCM has said nothing of use lately: then it is not a push's fault that it fails."""
        return self._away.reason is not None or now - self._answered_at > _AWAY_AFTER_S

    @property
    def fails(self) -> bool:
        """Whether every push has failed lately, so that it is worth a question whether FCM is there."""
        return self._failures >= _AWAY_AFTER_FAILURES

    @property
    def in_doubt(self) -> bool:
        """Whether every push has failed lately although FCM is there."""
        return self.fails and self._away.reason is None

    def answered(self, outcome: Outcome, asked: float, now: float) -> None:
        """Learns from the answer to a question, which concerned no push."""
        if outcome.http_status is not None and not _is_failure(outcome):
            self._trusted_until = now + _TRUSTED_S
            self._is_there(outcome, asked, now)

    def _is_there(self, outcome: Outcome, asked: float, now: float) -> None:
        self._answered_at = now
        if self._away.reason is not None:
            # A refusal as well says that FCM is there.
            self._note(self._away, replace(outcome, kind=Kind.ACCEPTED), asked, now)

    def _note(self, gate: PauseGate, outcome: Outcome, asked: float, now: float) -> None:
        paused = self.reason is not None
        gate.note(outcome, asked, now)
        if paused and self.reason is None:
            self._begin_gently(now)

    def _begin_gently(self, now: float) -> None:
        gentle = after_pause(now)
        if self._ramp.limit(now, gentle.first) == gentle.first:  # otherwise it is gentler still
            self._ramp = gentle

    def expect_losses(self, lost: int, most: int, now: float) -> None:
        """``lost`` workers have died lately: what they died of may be claimed here next."""
        gentle = after_losses(lost, most, now)
        if gentle.limit(now, most) < self._ramp.limit(now, most):
            self._ramp = gentle

    def limit(self, now: float, in_flight: int, most: int) -> int:
        """How many pushes may be in flight, at most ``most``."""
        for gate in (self._refused, self._away):
            if (allowed := gate.limit(now, in_flight)) is not None:
                return allowed
        return self._ramp.limit(now, min(most, _IN_DOUBT) if self.fails else most)

    def changes_in(self, now: float, in_flight: int) -> float | None:
        """Seconds until ``limit`` may be larger by itself; None: not before a push in flight is settled."""
        for gate in (self._refused, self._away):
            if (wait := gate.opens_in(now)) is not None:
                return None if in_flight else wait
        return self._ramp.grows_in(now)


def _is_failure(outcome: Outcome) -> bool:
    """FCM, or what gives access to it, is silent or has trouble of its own; a used-up quota is an answer."""
    return outcome.kind is Kind.RETRY and outcome.limit is None
