"""When to poll: depends on how many notifications come, and on how many rows come while the worker polls. Pure."""

from __future__ import annotations

import math
from enum import Enum

_MEMORY_S = 0.15
_HIGHEST_RATE = 800.0

_START_AT = 600.0
"""Notifications a second from which on a worker polls."""
_STOP_BELOW = 200.0
"""Rows a second below which it stops."""

# On a slow disk notifications never come that often, because transactions that notify commit one after another. Their
# crowd before the commit can be seen, but only by asking the database. With a flush of 10 ms and 32 clients, an
# application inserts 1,500 rows a second with this question, and 75 without it (tests.benchmarks.inserts --flush-ms).
_ASK_FOR_CROWD_AT = 40.0
# The first notifications come before there is a crowd, and until the worker polls each insert waits for all before it.
# So the worker asks again soon, and then less and less often.
_FIRST_BETWEEN_CROWDS_S = 0.1
_BETWEEN_CROWDS_S = 1.0

_BETWEEN_TRIES_S = 0.05

_SHORTEST_HOLD_S = 0.05
_LONGEST_HOLD_S = 3.2
_SOON_S = 1.0
_LEAST_UNOBSERVED_S = 1.0


class Want(Enum):
    """What this worker wants."""

    SLEEP = "to sleep until it is notified"
    POLL = "to poll"
    POLL_IF_CROWDED = "to poll if transactions queue to notify"


class Rate:
    """Events a second of the last tenths of a second; older events fade."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._at = 0.0

    def add(self, now: float, count: int = 1) -> None:
        """``count`` events have happened."""
        self._rate = min(_HIGHEST_RATE, self.at(now) + count / _MEMORY_S)
        self._at = now

    def at(self, now: float) -> float:
        """Events a second; at most 800, so that the end of a flood is noticed as soon as the end of a trickle."""
        return self._rate * math.exp((self._at - now) / _MEMORY_S)


class PollingPolicy:
    """Decides when a worker polls. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._notifications = Rate()
        self._rows = Rate()
        self._no_try_before = -math.inf
        self._no_crowd_before = -math.inf
        self._between_crowds = _FIRST_BETWEEN_CROWDS_S
        self._stopped_at = -math.inf
        self._hold = _SHORTEST_HOLD_S
        self._slow_since: float | None = None

    def notified(self, now: float) -> None:
        """A notification has come."""
        self._notifications.add(now)

    def want(self, now: float) -> Want:
        """What the worker wants while it does not poll."""
        notifications = self._notifications.at(now)
        if now < self._no_try_before or notifications < _ASK_FOR_CROWD_AT:
            return Want.SLEEP
        if notifications >= _START_AT:
            return Want.POLL
        return Want.POLL_IF_CROWDED if now >= self._no_crowd_before else Want.SLEEP

    def tried(self, now: float) -> None:
        """The worker has asked for the polling lock."""
        if now >= self._no_crowd_before + _BETWEEN_CROWDS_S:
            self._between_crowds = _FIRST_BETWEEN_CROWDS_S
        self._no_try_before = now + _BETWEEN_TRIES_S
        self._no_crowd_before = now + self._between_crowds
        self._between_crowds = min(2 * self._between_crowds, _BETWEEN_CROWDS_S)

    def started(self, now: float) -> None:
        """The worker polls. If it has stopped just before, that was too early, and it holds the lock for longer."""
        soon = now - self._stopped_at < _SOON_S
        self._hold = min(2 * self._hold, _LONGEST_HOLD_S) if soon else _SHORTEST_HOLD_S
        self._rows.add(now, int(_HIGHEST_RATE))
        self._slow_since = None

    def looked(self, now: float, rows: int) -> bool:
        """A poll has found ``rows``; returns whether to stop."""
        self._rows.add(now, rows)
        if self._rows.at(now) >= _STOP_BELOW:
            self._slow_since = None
        elif self._slow_since is None:
            self._slow_since = now
        return self._slow_since is not None and now - self._slow_since >= self._hold

    @property
    def longest_unobserved(self) -> float:
        """Seconds for which a worker may hold the lock although it cannot look at the queue."""
        return max(_LEAST_UNOBSERVED_S, self._hold)

    def stopped(self, now: float) -> None:
        """The worker has stopped polling."""
        self._stopped_at = now
