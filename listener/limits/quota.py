"""How many requests FCM may be sent now. Pure; times are monotonic seconds and are passed in.

FCM limits the messages of a project a minute, and asks senders to let the rate grow over a minute. This is a token
bucket: it fills at this worker's share of the quota, and each request takes from it. The bucket holds a small part of
the share, so that a worker that sends little never waits. Three things bound the rate at which it fills:

- the share: the quota, divided by the live workers;
- the ramp: the rate of the last seconds and, for a ramp of a minute, a tenth of the share more. Under full use that
  grows in a straight line;
- the answers of FCM: after 429 all workers send less, and within a minute come back to the whole quota.

A part of the bucket is reserved for high priority, and fills first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from listener.fcm.outcome import Limit

RECOVERY_S = 60.0
"""Seconds from nothing back to the whole quota. FCM's own window is as long, and FCM goes on refusing until its end."""

LEAST_FRACTION = 0.01
"""Of the quota. The rate never falls below this, because without any request nobody learns when FCM accepts again."""

_REDUCE_EVERY_S = 1.0
_KEPT_OF_PROJECT = 0.5
# Of the requests. A smaller share would reduce the rate by less than 2 % a second; the recovery is 1.7 % a second.
_HARDLY_REFUSED = 0.04

# The time constant with which a request fades out of what was sent lately.
_MEMORY_S = 6.0

_FEW = 500
_FOR_HIGH = 0.2  # of the bucket
_GRAIN_S = 0.05
_SOONEST_S = 0.001  # the shortest wait, when only a rounding error is lacking
_NOTEWORTHY = 0.01  # of the quota


@dataclass(frozen=True, slots=True)
class Fraction:
    """How much of the quota all workers together may use: ``value`` at ``since``, and from there evenly back to 1."""

    value: float = 1.0
    since: float = 0.0

    def at(self, now: float) -> float:
        """The fraction at a time, at most 1."""
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
        self._fraction = Fraction()
        self._reduced_at = -math.inf  # by this worker, or when it read of a reduction by another one
        self._now = now
        self._used = 0.0  # requests a second, lately
        self._refused = 0.0  # of these, answered with a 429 that does not say whose quota is used up
        self._per_push = 1.0  # requests that one push needs
        _, self._normal, self._high = _bucket(per_minute)

    def learn(self, workers: int, fraction: Fraction, now: float) -> None:
        """Takes over the number of live workers, and their common fraction if it is less than this worker's."""
        self._advance(now)
        self._workers = max(1, workers)
        if fraction.at(now) < self._fraction.at(now) - _NOTEWORTHY:
            self._fraction, self._reduced_at = fraction, now

    def refused(self, limit: Limit, asked: float, now: float) -> bool:
        """Learns from a 429 to a request made at ``asked``; returns whether it reduces the rate.

        A 429 for the project halves the rate. Where FCM does not say whose quota is used up, the share of such answers
        decides: one device that gets too many messages must not slow down all others.
        """
        self._advance(now)
        if limit is Limit.UNKNOWN:
            self._refused += 1.0 / _MEMORY_S
        if limit is Limit.TARGET or asked < self._reduced_at or now - self._reduced_at < _REDUCE_EVERY_S:
            return False
        keep = _KEPT_OF_PROJECT
        if limit is Limit.UNKNOWN:
            share = min(1.0, self._refused / max(self._used, 1.0 / _MEMORY_S))
            if share < _HARDLY_REFUSED:
                return False
            keep = 1.0 - share / 2.0
        self._fraction, self._reduced_at = (
            Fraction(max(LEAST_FRACTION, self._fraction.at(now) * keep), now),
            now,
        )
        return True

    @property
    def fraction(self) -> Fraction:
        """How much of the quota all workers together may use, as far as this worker knows."""
        return self._fraction

    def share(self, now: float) -> float:
        """Requests a second that this worker may make in the long run, once the ramp is over."""
        rate, _, _ = self._limits(now)
        return rate

    def rate(self, now: float) -> float:
        """Requests a second that this worker may make now and from now on."""
        self._advance(now)
        rate, _, _ = self._limits(now)
        return rate if self._ramp == 0.0 else min(rate, self._used + rate * _MEMORY_S / self._ramp)

    def used(self, now: float) -> float:
        """The part of its share that this worker has used lately, from 0 to 1."""
        self._advance(now)
        rate, _, _ = self._limits(now)
        return min(1.0, self._used / rate)

    def matters(self, now: float) -> bool:
        """Whether this worker sends enough that the number of workers matters."""
        self._advance(now)
        return self._used * 60.0 >= _NOTEWORTHY * self._per_minute or self._fraction.at(now) < 1.0

    def room(self, now: float) -> tuple[int, int]:
        """How many pushes may be claimed now, and how many of these may have normal priority."""
        rate = self.rate(now)
        _, size, _ = self._limits(now)
        of_both = max(0.0, self._normal) + max(0.0, self._high)
        normal = self._pushes(self._normal) if self._normal >= _grain(rate, size) else 0
        return max(normal, self._pushes(of_both) if of_both >= 1.0 else 0), normal

    def opens_in(self, now: float) -> float:
        """Seconds until there is room for normal priority; or for high priority, while there is none for either.

        At most a second, because the rate may change. 0: there is room.
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
        """Takes the requests of ``pushes`` claimed pushes out of the bucket.

        They may be more than there was room for, because a user may have many devices. Then later pushes of the same
        priority wait until the bucket has made up for it.
        """
        self._used += (high + normal) / _MEMORY_S
        if pushes:
            each = (high + normal) / pushes
            self._per_push = max(1.0, each, 0.9 * self._per_push + 0.1 * each)
        self._normal -= normal
        kept = min(high, max(0.0, self._high))
        shared = min(high - kept, max(0.0, self._normal))
        self._normal -= shared
        self._high -= high - shared

    def give_back(self, high: int, normal: int, now: float) -> None:
        """Puts requests that were taken and not made back into the bucket."""
        self._advance(now)
        _, size, size_high = self._limits(now)
        self._used = max(0.0, self._used - (high + normal) / _MEMORY_S)
        to_high = min(high, size_high - self._high)
        self._high += to_high
        self._normal = min(size, self._normal + normal + high - to_high)

    def _pushes(self, requests: float) -> int:
        return max(1, int(requests / self._per_push))

    def _limits(self, now: float) -> tuple[float, float, float]:
        return _bucket(self._per_minute * self._fraction.at(now) / self._workers)

    def _advance(self, now: float) -> None:
        """Fills the bucket up to now."""
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
        """What the bucket gains in ``seconds``, if nothing is spent meanwhile."""
        rate, _, _ = self._limits(self._now + seconds / 2.0)
        if self._ramp == 0.0:
            return rate * seconds
        used = self._used * _MEMORY_S * -math.expm1(-seconds / _MEMORY_S)
        return min(rate * seconds, used + rate * seconds * _MEMORY_S / self._ramp)


def _bucket(share: float) -> tuple[float, float, float]:
    """For a share of requests a minute: requests a second, and what the bucket holds for normal and for high priority.

    A full bucket and one minute of filling together make up the share, so that no minute sees more.
    """
    size = max(2.0, min(share / 10.0, max(_FEW, share / 600.0)))
    high = max(1.0, _FOR_HIGH * size)
    return max(share - size, share / 2.0) / 60.0, size - high, high


def _grain(rate: float, size: float) -> float:
    """The number of requests that makes a claim worth its round trip."""
    return max(1.0, min(size / 2.0, rate * _GRAIN_S))
