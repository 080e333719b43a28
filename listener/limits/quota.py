"""How many requests FCM may be sent now. Pure; times are monotonic seconds and are passed in.

FCM takes so many messages a minute from a project, and wants to see the rate grow over a minute. So there is a bucket:
it fills at this worker's share of the quota, each request takes from it, and what it can hold is a small part of the
share, so that who sends little never waits. What it fills at is bounded three times:

- by the share: the quota, divided by the live workers;
- by the ramp: what has been sent lately and, for a ramp of a minute, a tenth of the share more. Under full use that
  grows in a straight line;
- by what FCM has said: after 429 all workers send less, and within a minute come back to the whole quota.

A part of the bucket is kept for high priority, and is filled first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from listener.fcm.outcome import Limit

RECOVERY_S = 60.0
"""From nothing back to the whole quota. As long as FCM's own window: what it refuses before, it refuses until then."""

LEAST_PART = 0.01
"""Of the quota, below which the rate is never lowered: without any request nobody would know when it is over."""

_LOWER_EVERY_S = 1.0
_PROJECTS_PART = 0.5
# Of the requests. Half of that a second is less than what comes back in it.
_HARDLY_REFUSED = 0.04

# What "lately" is: how long a request counts among those that were sent, fading.
_MEMORY_S = 6.0

_FEW = 500
_FOR_HIGH = 0.2  # of the bucket
_GRAIN_S = 0.05
_SOONEST_S = 0.001  # what is lacking for rounding only is there by then
_NOTEWORTHY = 0.01  # of the quota


@dataclass(frozen=True, slots=True)
class Fraction:
    """How much of the quota the fleet may use: ``value`` at ``since``, and from there evenly back to all of it."""

    value: float = 1.0
    since: float = 0.0

    def at(self, now: float) -> float:
        """The part at a time, at most 1."""
        return min(1.0, self.value + max(0.0, now - self.since) / RECOVERY_S)

    def whole_in(self, now: float) -> float:
        """Seconds until it is 1."""
        return max(0.0, self.since + (1.0 - self.value) * RECOVERY_S - now)


class Quota:
    """The bucket of one worker.

    Args:
        per_minute: messages that FCM takes from the project a minute.
        ramp: seconds from nothing to the whole rate; 0: at once.
    """

    def __init__(self, per_minute: float, ramp: float, now: float) -> None:
        self._per_minute = per_minute
        self._ramp = ramp
        self._workers = 1
        self._part = Fraction()
        self._lowered_at = -math.inf  # here, or heard of here
        self._now = now
        self._used = 0.0  # requests a second, lately
        self._refused = 0.0  # of these, with a 429 that does not tell whose quota it is
        self._a_push = 1.0  # requests that it needs
        _, self._normal, self._high = _bucket(per_minute)

    def learn(self, workers: int, part: Fraction, now: float) -> None:
        """What the fleet is like: how many live, and how far the rate was last lowered; the lesser part counts."""
        self._advance(now)
        self._workers = max(1, workers)
        if part.at(now) < self._part.at(now) - _NOTEWORTHY:
            self._part, self._lowered_at = part, now

    def refused(self, limit: Limit, asked: float, now: float) -> bool:
        """Learns from a 429 to a request made at ``asked``; returns whether the rate is lower for it.

        The project's own quota halves the rate. Where FCM does not say whose quota it was, it counts by how many
        such answers there are: one chatty device is no reason to keep everybody waiting.
        """
        self._advance(now)
        if limit is Limit.UNKNOWN:
            self._refused += 1.0 / _MEMORY_S
        if limit is Limit.TARGET or asked < self._lowered_at or now - self._lowered_at < _LOWER_EVERY_S:
            return False
        keep = _PROJECTS_PART
        if limit is Limit.UNKNOWN:
            share = min(1.0, self._refused / max(self._used, 1.0 / _MEMORY_S))
            if share < _HARDLY_REFUSED:
                return False
            keep = 1.0 - share / 2.0
        self._part, self._lowered_at = Fraction(max(LEAST_PART, self._part.at(now) * keep), now), now
        return True

    @property
    def part(self) -> Fraction:
        """How much of the quota the fleet may use, as far as this worker knows."""
        return self._part

    def rate(self, now: float) -> float:
        """Requests a second that this worker may make now, and go on making."""
        self._advance(now)
        rate, _, _ = self._limits(now)
        return rate if self._ramp == 0.0 else min(rate, self._used + rate * _MEMORY_S / self._ramp)

    def matters(self, now: float) -> bool:
        """Whether this worker sends so much that it should know how many others do."""
        self._advance(now)
        return self._used * 60.0 >= _NOTEWORTHY * self._per_minute or self._part.at(now) < 1.0

    def room(self, now: float) -> tuple[int, int]:
        """How many pushes may be claimed now, and how many of these may have normal priority."""
        rate = self.rate(now)
        _, size, _ = self._limits(now)
        of_both = max(0.0, self._normal) + max(0.0, self._high)
        normal = self._pushes(self._normal) if self._normal >= _grain(rate, size) else 0
        return max(normal, self._pushes(of_both) if of_both >= 1.0 else 0), normal

    def opens_in(self, now: float) -> float:
        """Seconds after which to look again for room for normal priority; or for high, while there is none for either.

        As the rate is now, and at most a second: it may change meanwhile. 0: there is room.
        """
        rate = self.rate(now)
        _, size, size_high = self._limits(now)
        lacking = 1.0 - self._high - max(0.0, self._normal)
        if lacking <= 0.0:
            lacking = _grain(rate, size) - self._normal
            if lacking > 0.0:
                lacking += size_high - self._high
        return 0.0 if lacking <= 0.0 else min(1.0, max(_SOONEST_S, lacking / rate))

    def spend(self, high: int, normal: int, pushes: int) -> None:
        """So many requests will be made for so many pushes that were claimed. It may be more than there was room for:
        a user may have many devices. Then the next ones of that lane wait for it."""
        self._used += (high + normal) / _MEMORY_S
        if pushes:
            each = (high + normal) / pushes
            self._a_push = max(1.0, each, 0.9 * self._a_push + 0.1 * each)
        self._normal -= normal
        kept = min(high, max(0.0, self._high))
        shared = min(high - kept, max(0.0, self._normal))
        self._normal -= shared
        self._high -= high - shared

    def _pushes(self, requests: float) -> int:
        return max(1, int(requests / self._a_push))

    def _limits(self, now: float) -> tuple[float, float, float]:
        return _bucket(self._per_minute * self._part.at(now) / self._workers)

    def _advance(self, now: float) -> None:
        """Fills the bucket with what has come since the last time."""
        seconds = max(0.0, now - self._now)
        filled = self._fills(seconds)
        self._now += seconds
        _, size, size_high = self._limits(self._now)
        to_high = min(filled, max(0.0, size_high - self._high))
        self._high = min(size_high, self._high + to_high)
        self._normal = min(size, self._normal + filled - to_high)
        fade = math.exp(-seconds / _MEMORY_S)
        self._used *= fade
        self._refused *= fade

    def _fills(self, seconds: float) -> float:
        """What comes in so many seconds, if nothing is spent meanwhile."""
        rate, _, _ = self._limits(self._now + seconds / 2.0)
        if self._ramp == 0.0:
            return rate * seconds
        used = self._used * _MEMORY_S * -math.expm1(-seconds / _MEMORY_S)
        return min(rate * seconds, used + rate * seconds * _MEMORY_S / self._ramp)


def _bucket(share: float) -> tuple[float, float, float]:
    """What a share of so many a minute means: requests a second, and what the bucket holds for each lane.

    A full bucket and a minute's filling together are the share, so that no minute sees more.
    """
    size = max(2.0, min(share / 10.0, max(_FEW, share / 600.0)))
    high = max(1.0, _FOR_HIGH * size)
    return max(share - size, share / 2.0) / 60.0, size - high, high


def _grain(rate: float, size: float) -> float:
    """Requests that are worth a claim: a claim is a round trip, however few rows it brings."""
    return max(1.0, min(size / 2.0, rate * _GRAIN_S))
