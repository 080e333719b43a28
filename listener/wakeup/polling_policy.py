"""When to be awake: how often the bell rings, and how much comes while it does not. Pure."""

from __future__ import annotations

import math
from enum import Enum

_MEMORY_S = 0.15
_MOST = 800.0

_LOUD = 600.0
"""Rings a second that are reason enough to be awake."""
_BUSY = 200.0
"""Rows a second that are reason enough to stay so."""

# On a slow disk the bell never rings so often, for transactions that ring commit one after another. Those that wait to
# commit can be seen, but that must be asked.
_NOTICEABLE = 40.0
_BETWEEN_CROWDS_S = 1.0

_BETWEEN_TRIES_S = 0.05

_LEAST_LINGER_S = 0.05
_MOST_LINGER_S = 3.2
_SOON_S = 1.0
_LEAST_BLIND_S = 1.0


class Want(Enum):
    """What this worker wants."""

    SLEEP = "to sleep until the bell rings"
    AWAKE = "to be awake"
    AWAKE_IF_CROWDED = "to be awake if transactions queue to ring"


class Rate:
    """Events a second, lately: what is older than some tenths of a second is forgotten."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._at = 0.0

    def add(self, now: float, count: int = 1) -> None:
        """So many have happened."""
        self._rate = min(_MOST, self.at(now) + count / _MEMORY_S)
        self._at = now

    def at(self, now: float) -> float:
        """How many a second; at most 800, so that the end of many is noticed as soon as the end of some."""
        return self._rate * math.exp((self._at - now) / _MEMORY_S)


class PollingPolicy:
    """Decides when a worker is to be awake. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._rings = Rate()
        self._rows = Rate()
        self._no_try_before = -math.inf
        self._no_crowd_before = -math.inf
        self._let_go_at = -math.inf
        self._linger = _LEAST_LINGER_S
        self._slow_since: float | None = None

    def rang(self, now: float) -> None:
        """The bell rang."""
        self._rings.add(now)

    def want(self, now: float) -> Want:
        """What to do, asleep."""
        rings = self._rings.at(now)
        if now < self._no_try_before or rings < _NOTICEABLE:
            return Want.SLEEP
        if rings >= _LOUD:
            return Want.AWAKE
        return Want.AWAKE_IF_CROWDED if now >= self._no_crowd_before else Want.SLEEP

    def tried(self, now: float) -> None:
        """The lock was asked for."""
        self._no_try_before = now + _BETWEEN_TRIES_S
        self._no_crowd_before = now + _BETWEEN_CROWDS_S

    def took(self, now: float) -> None:
        """The lock is had. Where it has just been let go, that was too early: this time it is kept for longer."""
        soon = now - self._let_go_at < _SOON_S
        self._linger = min(2 * self._linger, _MOST_LINGER_S) if soon else _LEAST_LINGER_S
        self._rows.add(now, int(_MOST))
        self._slow_since = None

    def looked(self, now: float, rows: int) -> bool:
        """A look at the queue has brought so many rows; whether it is time to sleep."""
        self._rows.add(now, rows)
        if self._rows.at(now) >= _BUSY:
            self._slow_since = None
        elif self._slow_since is None:
            self._slow_since = now
        return self._slow_since is not None and now - self._slow_since >= self._linger

    @property
    def blind(self) -> float:
        """Seconds for which to keep the lock without knowing what comes; more if it had to be taken again soon."""
        return max(_LEAST_BLIND_S, self._linger)

    def let_go(self, now: float) -> None:
        """The lock was let go."""
        self._let_go_at = now
