"""What FCM's answers say about FCM and about our configuration, and how much may be sent accordingly. Pure.

It distinguishes three faults:

- *Refused*: the key, the project or a permission is wrong. Only a probe is sent now and then. If FCM refuses a push
  while it accepts others, only that push waits, longer each time. After a single refusal another push is the probe at
  once.
- *Away*: FCM does not answer, or only with 5xx. Pushes wait without using a try, and probes are frequent. If FCM
  answers a question (see sending/fcm_question.py) although pushes fail, the pushes may be the cause. Then a few are
  still tried, so that good pushes do not wait behind bad ones.
- *One platform refused*: Apple or the web push service takes nothing from FCM, and the other platforms go on.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from listener.fcm.outcome import Disposition, Outcome
from listener.limits.circuit_breaker import CircuitBreaker
from listener.limits.refusals import VOTES, Evidence, Refused, RefusedPushes, Verdict, Votes, witness
from listener.limits.retry_policy import RetryPolicy
from listener.limits.slow_start import SlowStart, after_losses, after_pause
from listener.limits.token_loss import TOKEN_LOSS, TokenLossBreaker
from listener.push import Push, Target

_REFUSED_QUIET_S = 60.0
_AWAY_AFTER_FAILURES = 20
_AWAY_AFTER_S = 60.0
_IN_DOUBT = 8  # pushes at once
_TRUSTED_S = 30.0  # after the answer to a question
_ACCEPTS_S = 10.0  # after the acceptance of a question
_FEW = 3  # users
_OF_OAUTH = "OAUTH_"  # begins the code of every fault of the access token
_MOST_PLATFORMS = 100  # a view of the application's own may call a platform anything

_THERE = Outcome(Disposition.ACCEPTED, "OK", "FCM answers", 200)


@dataclass(slots=True, frozen=True)
class PauseTimes:
    """Seconds until the first probe of a pause, and the longest wait for one after probes that failed.

    ``platform_probe``: seconds to wait for the answer to the one request that finds out whether FCM accepts a platform
    again.
    """

    refused_first: float = 30.0
    refused_longest: float = 300.0
    away_first: float = 2.0
    away_longest: float = 4.0
    platform_first: float = 60.0
    platform_longest: float = 600.0
    platform_probe: float = 15.0


@dataclass(slots=True)
class _Platform:
    """A platform for which FCM has refused a push."""

    evidence: Evidence = field(default_factory=Evidence)
    votes: Votes = field(default_factory=Votes)
    """Whether its devices fit the credentials."""
    since: float = -math.inf
    until: float = 0.0
    length: float = 0.0
    """Seconds for which the platform was last held back; 0: it was not, since FCM last accepted a push for it."""
    reason: str = ""
    """Why it is held back."""

    def hold(self, outcome: Outcome, now: float, times: PauseTimes) -> Outcome:
        """Holds it back, twice as long each time."""
        self.length = min(2 * self.length, times.platform_longest) if self.length else times.platform_first
        self.since, self.until, self.reason = now, now + self.length, outcome.reason
        return replace(outcome, delay=max(outcome.delay, self.length), uses_try=False)


class Pause(StrEnum):
    """The kinds of pauses, in the words of /readyz, which anybody may read."""

    REFUSED = "FCM refuses our credentials, permissions or project; the log has its words"
    AWAY = "FCM does not answer"
    TOKEN_LOSS = "FCM calls nearly every token dead"  # noqa: S105  # not a secret
    NO_ACCESS_TOKEN = "no access token for FCM can be obtained; the log says why"  # noqa: S105  # not a secret


class FcmHealth:
    """Learns from every answer. Times are monotonic seconds.

    Args:
        slow_start: how to begin.
        policy: how long a push waits that FCM refuses while it accepts others.
        token_loss_guard: whether to doubt FCM when it calls nearly every token dead.
        times: how long pauses are.
    """

    def __init__(
        self,
        slow_start: SlowStart,
        *,
        policy: RetryPolicy | None = None,
        token_loss_guard: bool = True,
        times: PauseTimes | None = None,
    ) -> None:
        self._times = times = times or PauseTimes()
        self._slow_start = slow_start
        self._policy = policy or RetryPolicy()
        self._guard = TokenLossBreaker() if token_loss_guard else None
        self._refused = CircuitBreaker(times.refused_first, times.refused_longest)
        self._refused_asked = -math.inf  # when the latest request was made whose refusal concerns everybody
        self._evidence = Evidence(_REFUSED_QUIET_S)
        self._refused_pushes = RefusedPushes()
        self._away = CircuitBreaker(times.away_first, times.away_longest)
        self._failures = 0  # in a row; an answer that is no failure ends the row
        self.answered_at = -math.inf
        """When FCM last gave a useful answer, even if it was a refusal."""
        self.accepted_at = -math.inf
        """When FCM last accepted a push."""
        self._trusted_until = -math.inf
        self._accepts_until = -math.inf
        self._platforms: dict[str, _Platform] = {}
        self._accepting: set[str] = set()  # platforms for which FCM has ever accepted a push

    @property
    def reason(self) -> str | None:
        """Why sending is paused; None while it is not."""
        return self._refused.reason or self._away.reason

    @property
    def is_open(self) -> bool:
        """Whether everything may be sent, and no platform has ever been refused."""
        return self._refused.reason is None and self._away.reason is None and not self._platforms

    @property
    def pause_kind(self) -> Pause | None:
        """What kind of pause it is; None while sending is not paused. It quotes nothing from FCM."""
        breaker = self._refused if self._refused.reason else self._away
        if breaker.reason is None or breaker.code is None:
            return None
        if breaker.code.startswith(_OF_OAUTH):
            return Pause.NO_ACCESS_TOKEN
        if breaker is self._away:
            return Pause.AWAY
        return Pause.TOKEN_LOSS if breaker.code == TOKEN_LOSS else Pause.REFUSED

    @property
    def paused_at(self) -> float | None:
        """When the present pause began; None while sending is not paused."""
        breakers = [breaker for breaker in (self._refused, self._away) if breaker.reason is not None]
        return min((breaker.opened_at for breaker in breakers), default=None)

    def judge(self, push: Push, target: Target, outcome: Outcome, asked: float, now: float) -> Outcome:
        """Learns from the answer to a request made at ``asked``; returns the outcome, in the light of other answers."""
        if outcome.disposition is Disposition.ACCEPTED:
            self._accepted(push, target, asked, now)
            return outcome
        is_failure = _is_failure(outcome)
        who = witness(push, target)
        if self._guard is not None and target.is_device:
            outcome = self._guard.judge(who, push.id, outcome)
        if is_failure:
            self._failures += 1
            if self.fails:
                if now >= self._trusted_until:
                    away = replace(
                        outcome, disposition=Disposition.PAUSE, reason=f"FCM is away: {outcome.reason}"
                    )
                    self._away.note(away, asked, now)
                outcome = replace(outcome, uses_try=False)
        elif outcome.http_status is not None:
            self._end_failures(asked, now)
        match outcome.disposition:
            case Disposition.PAUSE:
                return self._refuse(push, who, outcome, asked, now)
            case Disposition.REFUSED:
                self._note(self._refused, outcome, asked, now)
                refused = self._refused_pushes.note(push, self._evidence, now)
                return self._refuse_alone(push, outcome, refused, self._evidence)
            case Disposition.MISFIT:
                self._note(self._refused, outcome, asked, now)
                return self._misfit(push, who, target.platform, outcome, asked, now)
            case Disposition.PAUSE_PLATFORM:
                self._note(self._refused, outcome, asked, now)
                return self._refuse_platform(push, who, target.platform, outcome, asked, now)
        self._note(self._refused, outcome, asked, now)
        return outcome

    def _accepted(self, push: Push, target: Target, asked: float, now: float) -> None:
        """Called for nearly every push. Nearly always there is nothing to change."""
        who = witness(push, target)
        if self._guard is not None and target.is_device:
            self._guard.vote(who, push.id)
        if self._failures:  # FCM is away only after failures
            self._end_failures(asked, now)
        self.answered_at = self.accepted_at = now
        self._evidence.accept(asked)
        if target.platform is not None:
            self._accept_platform(who, target.platform, asked)
        if self._refused.reason is not None:
            # Even a request from before the breaker opened shows that not all are refused.
            if asked > self._refused_asked:
                self._resume(now)
            self._note(self._refused, _THERE, asked, now)

    def _accept_platform(self, who: Hashable, platform: str, asked: float) -> None:
        if len(self._accepting) < _MOST_PLATFORMS:
            self._accepting.add(platform)
        if (held := self._platforms.get(platform)) is not None:
            # No other answer counts: FCM reports a dead token, for example, before anybody checks the credentials.
            held.evidence.accept(asked)
            held.votes.note(who, refused=False)
            if asked >= held.since:
                held.since, held.until, held.length = -math.inf, 0.0, 0.0

    def _refuse(self, push: Push, who: Hashable, outcome: Outcome, asked: float, now: float) -> Outcome:
        """Pauses sending; or only this push, if FCM accepts others."""
        if outcome.http_status is None:  # there is no access token, so nothing can be sent
            return self._pause(outcome, asked, now)
        paused = self._refused.reason is not None
        refused = self._refused_pushes.note(push, self._evidence, now)
        # The guard against token loss has weighed the answers to others already.
        is_token_loss = outcome.code == TOKEN_LOSS
        if not is_token_loss and self._evidence.accepted_since(refused.first):
            return self._refuse_alone(push, outcome, refused, self._evidence)
        wait = _doubled(self._times.refused_first, self._policy.cap, _claims(push, refused))
        if paused and refused.times > 1:
            # A second refusal of the same push says nothing new, so only this push waits longer. Another push may be
            # the next probe at once: a good one must not wait for minutes because a bad one was alone all night.
            return replace(outcome, delay=max(outcome.delay, wait))
        if paused or is_token_loss:
            return self._pause(outcome, asked, now)
        match self._evidence.refuse(who, asked):
            case Verdict.ALL:
                return self._pause(outcome, asked, now)
            case Verdict.DOUBT:
                self._pause(outcome, asked, now)
                self._refused.doubt(now)
                return replace(outcome, delay=max(outcome.delay, wait))
            case Verdict.ONE:
                return self._refuse_alone(push, outcome, refused, self._evidence)

    def was_refused(self, push: Push) -> bool:
        """Whether FCM has refused a push. The next attempt then begins with one request for each platform."""
        return push.id in self._refused_pushes

    def _pause(self, outcome: Outcome, asked: float, now: float) -> Outcome:
        self._refused_asked = max(self._refused_asked, asked)
        self._note(self._refused, outcome, asked, now)
        # Another push that is due by then is the next probe, so that one bad push is not every probe.
        return replace(outcome, delay=max(outcome.delay, self._refused.probes_in(now) or 0.0))

    def _refuse_platform(
        self, push: Push, who: Hashable, platform: str | None, outcome: Outcome, asked: float, now: float
    ) -> Outcome:
        """Holds back a platform; or only this push, if FCM accepts others for that platform."""
        if platform is None:  # accepted pushes may go to other platforms, so they say nothing about this one
            refused = self._refused_pushes.note(push, self._evidence, now)
            wait = _doubled(self._times.platform_first, self._policy.cap, _claims(push, refused))
            # The credentials may be wrong for hours, so tries count only once the push has waited its longest.
            uses_try = refused.uses_try and wait >= self._policy.cap
            return replace(outcome, delay=max(outcome.delay, wait), uses_try=uses_try)
        held = self._platforms.setdefault(platform, _Platform())
        refused = self._refused_pushes.note(push, held.evidence, now)
        if asked < held.since:  # was under way when the platform was refused
            return replace(outcome, delay=max(0.0, held.until - now))
        is_its_own = held.evidence.accepted_since(refused.first)
        if is_its_own or not (held.length or held.evidence.refuse(who, asked) is Verdict.ALL):
            if held.length:
                held.until = now  # the next request may be the probe
            return self._refuse_alone(push, outcome, refused, held.evidence)
        return held.hold(outcome, now, self._times)

    def _misfit(
        self, push: Push, who: Hashable, platform: str | None, outcome: Outcome, asked: float, now: float
    ) -> Outcome:
        """Makes the push wait; or its platform, if nearly all devices of the platform do not fit the credentials.

        Three users are enough if FCM has never accepted a push for the platform, as with a key of the wrong
        environment.
        """
        if platform is None:
            refused = self._refused_pushes.note(push, self._evidence, now)
            return self._refuse_alone(push, outcome, refused, self._evidence)
        held = self._platforms.setdefault(platform, _Platform())
        refused = self._refused_pushes.note(push, held.evidence, now)
        if refused.times == 1:  # a retry is no new evidence against devices that were accepted once
            held.votes.note(who, refused=True)
        if asked < held.since:
            return replace(outcome, delay=max(0.0, held.until - now), uses_try=False)
        if held.votes.nearly_all_refused(fewest=VOTES if platform in self._accepting else _FEW):
            return held.hold(outcome, now, self._times)
        if held.length:
            held.until = now  # the next request may be the probe
        return self._refuse_alone(push, outcome, refused, held.evidence)

    def _refuse_alone(self, push: Push, outcome: Outcome, refused: Refused, evidence: Evidence) -> Outcome:
        """The push waits longer each time.

        It uses a try if the answer is about this push alone, or if FCM has accepted others since its last refusal,
        unless everything is paused.
        """
        reason = outcome.reason
        if evidence.accepted_since(refused.first):
            reason = f"FCM refuses this push while it accepts others: {reason}"
        delay = max(outcome.delay, self._policy.longest(_refusals(push, refused)))
        if outcome.uses_try:
            return replace(outcome, reason=reason, delay=delay, uses_try=self.reason is None)
        uses_try = refused.uses_try and self._refused.reason is None
        return replace(outcome, reason=reason, delay=delay, uses_try=uses_try)

    @property
    def held_platforms(self) -> dict[str, str]:
        """The platforms to which nothing is sent but probes, and why."""
        return {name: held.reason for name, held in self._platforms.items() if held.length}

    def platform_wait(self, platform: str | None, now: float) -> float:
        """Seconds for which nothing should be sent to a platform; 0: the caller sends one request now.

        After each wait one request finds out whether FCM accepts the platform again. The others wait for its answer.
        """
        held = self._platforms.get(platform) if platform is not None else None
        if held is None or not held.length:
            return 0.0
        wait = max(0.0, held.until - now)
        if not wait:
            held.until = now + self._times.platform_probe
        return wait

    def is_away(self, now: float) -> bool:
        """Whether FCM has given no useful answer lately. Then a failure is not the push's fault."""
        return self._away.reason is not None or now - self.answered_at > _AWAY_AFTER_S

    @property
    def fails(self) -> bool:
        """Whether every push has failed lately, which makes it worth asking whether FCM is there."""
        return self._failures >= _AWAY_AFTER_FAILURES

    @property
    def in_doubt(self) -> bool:
        """Whether every push has failed lately although FCM is there."""
        return self.fails and self._away.reason is None

    def answered(self, outcome: Outcome, asked: float, now: float) -> None:
        """Learns from the answer to a question, which is no push; see sending/fcm_question.py."""
        if outcome.http_status is not None and not _is_failure(outcome):
            self._trusted_until = now + _TRUSTED_S
            self._note_presence(asked, now)
        if outcome.disposition is Disposition.ACCEPTED:
            self._accepts_until = now + _ACCEPTS_S

    def note_token(self, now: float) -> bool:
        """There is an access token, so a pause for want of one is probed at once. Returns whether that is sooner."""
        code, wait = self._refused.code, self._refused.probes_in(now)
        if code is None or not code.startswith(_OF_OAUTH) or not wait:
            return False
        self._refused.probe_at_once(now)
        return True

    def accepts_questions(self, now: float) -> bool:
        """Whether FCM has accepted a question lately: neither the credentials nor the project are wrong."""
        return now < self._accepts_until

    def _end_failures(self, asked: float, now: float) -> None:
        if self.in_doubt:
            self._begin_slowly(now)
        self._note_presence(asked, now)
        if self._away.reason is None:  # otherwise the request was made before FCM went away
            self._failures = 0

    def _note_presence(self, asked: float, now: float) -> None:
        self.answered_at = now
        if self._away.reason is not None:
            # A refusal, too, shows that FCM is there.
            self._note(self._away, _THERE, asked, now)

    def _note(self, breaker: CircuitBreaker, outcome: Outcome, asked: float, now: float) -> None:
        paused = self.reason is not None
        breaker.note(outcome, asked, now)
        if paused and self.reason is None:
            self._begin_slowly(now)

    def _resume(self, now: float) -> None:
        if self._refused.reason is not None:
            self._refused.close()
            if self.reason is None:
                self._begin_slowly(now)

    def _begin_slowly(self, now: float) -> None:
        gentle = after_pause(now)
        if (
            self._slow_start.limit(now, gentle.first) == gentle.first
        ):  # otherwise the present one is slower still
            self._slow_start = gentle

    def expect_losses(self, lost: int, most: int, now: float) -> None:
        """``lost`` workers have died lately, and this one may claim the cause of their deaths next."""
        gentle = after_losses(lost, most, now)
        if gentle.limit(now, most) < self._slow_start.limit(now, most):
            self._slow_start = gentle

    def limit(self, now: float, in_flight: int, most: int) -> int:
        """How many pushes may be in flight, at most ``most``."""
        for breaker in (self._refused, self._away):
            if (allowed := breaker.limit(now, in_flight)) is not None:
                return allowed
        return self._slow_start.limit(now, min(most, _IN_DOUBT) if self.fails else most)

    def changes_in(self, now: float, in_flight: int) -> float | None:
        """Seconds until ``limit`` may be larger by itself; None: not before a push in flight is settled."""
        for breaker in (self._refused, self._away):
            if (wait := breaker.probes_in(now)) is not None:
                return None if in_flight else wait
        return self._slow_start.grows_in(now)


def _is_failure(outcome: Outcome) -> bool:
    """Whether FCM, or the token endpoint, is silent or has a fault of its own. A used-up quota is an answer."""
    return outcome.disposition is Disposition.RETRY and outcome.limit is None


def _claims(push: Push, refused: Refused) -> int:
    """How often a push has been claimed in vain. The row counts too: this process forgets, and others claim as well."""
    return max(refused.times, push.attempt - push.lost_claims)


def _refusals(push: Push, refused: Refused) -> int:
    """How often FCM has refused a push. The row counts tries: this process forgets, and others claim as well."""
    return max(refused.times, push.retry_count + 1)


def _doubled(first: float, longest: float, times: int) -> float:
    """Seconds to wait the ``times``-th time: twice as long each time."""
    return min(longest, first * 2.0 ** min(times - 1, 30))
