"""From which due time on a worker looks at the queue. Pure; monotonic times are passed in.

While some transaction keeps an old snapshot, the index holds an entry for every push that was sent since. A look that
begins at the oldest due time steps over all of them. So a worker begins where it has claimed everything that it could
see. It can have missed a row that lies before only if the row came there later, or was locked: a transaction that was
open for long inserted it, it was scheduled for a time that had passed, or a worker died with it. Therefore the worker
still looks over the whole range, but seldom:

- After a claim that began later, one over the whole range follows within 0.8 s, unless a question does. Whatever makes
  a worker look, such as a notification, may be due to a row that lies before.
- Before the worker sleeps it asks when the next row is due, over the whole range. If it has done so just before, it
  asks within a shorter range, and sleeps only until it may ask again.

Where to begin is thus a guess that saves time. If it is wrong, a row is found 0.8 s later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# If millions of entries are in the way, looks over the whole range take a quarter of the time at most.
_DEAR = 4.0

# Timers fire that much too early.
_TIMERS_EARLY_S = 0.01


@dataclass(frozen=True, slots=True)
class Begin:
    """Where a look at the queue begins: due times in Unix seconds, by the database's clock."""

    high: float = -math.inf
    """For high priority."""
    normal: float = -math.inf
    """For all other priorities."""
    ahead: float = math.inf
    """A question after the next due row asks for rows that are due within so many seconds."""

    @property
    def is_whole(self) -> bool:
        """Whether the look is one over the whole range."""
        return self.high == self.normal == -math.inf


WHOLE = Begin()


@dataclass(frozen=True, slots=True)
class Seen:
    """What a claim has seen, in Unix seconds by the database's clock."""

    now: float
    high: float | None
    """Before this time the claim has left no due row of high priority, but for those that were locked or excluded.
    None: it did not look for high priority."""
    normal: float | None
    """The same for all other priorities."""


@dataclass(slots=True)
class _Lane:
    floor: float = -math.inf
    owes_since: float | None = None
    """When a claim began that was not over the whole range, if nothing over the whole range has followed."""


class Frontier:
    """How far one worker has claimed, and when it has to look at what lies before.

    Args:
        margin: seconds by which a look begins before what is claimed. An insert makes rows due at the beginning of its
            transaction, so they are committed later. Those of a transaction that lasts no longer are found at once.
        at_most: seconds for which claims may begin later.
        cheap: a question over the whole range that takes a second may be repeated after so many, and after ``at_most``.
    """

    def __init__(self, *, margin: float = 1.0, at_most: float = 0.8, cheap: float = 20.0) -> None:
        self._margin = margin
        self._at_most = at_most
        self._cheap = cheap
        self._high, self._normal = _Lane(), _Lane()
        self._question_at = -math.inf
        self._question_cost = 0.0
        self._patience = at_most
        self._restarted_at = -math.inf

    def restart(self, now: float) -> None:
        """Rows may lie before: the next claim is to look over the whole range."""
        self._restarted_at = now
        for lane in (self._high, self._normal):
            lane.owes_since = -math.inf

    def begin_claim(self, now: float, *, normal: bool = True) -> Begin:
        """Where a claim begins, which looks for normal priority or does not."""
        lanes = (self._high, self._normal) if normal else (self._high,)
        if any(lane.owes_since is not None and now >= lane.owes_since + self._patience for lane in lanes):
            return WHOLE
        for lane in lanes:
            lane.owes_since = now if lane.owes_since is None else lane.owes_since
        return Begin(self._high.floor, self._normal.floor)

    def begin_question(self, now: float) -> Begin:
        """Where a question begins, when the next row is due."""
        if now >= self._question_at - _TIMERS_EARLY_S:
            return WHOLE
        begin = Begin(self._high.floor, self._normal.floor, self._question_at - now)
        return WHOLE if begin.is_whole else begin

    def question_in(self, now: float) -> float:
        """Seconds until a question may be one over the whole range."""
        return max(0.0, self._question_at - now)

    def claimed(self, begin: Begin, seen: Seen, began: float, ended: float) -> None:
        """A claim that lasted from ``began`` to ``ended`` has seen this."""
        lanes = ((self._high, seen.high), (self._normal, seen.normal))
        for lane, through in lanes:
            if through is not None:
                lane.floor = min(through, seen.now - self._margin)
                if begin.is_whole:
                    self._has_looked(lane, began)
        if begin.is_whole:
            self._patience = self._patience_after(ended - began)
            if all(through is not None for _, through in lanes):
                self._question_at = began + self._between_questions()

    def asked(self, begin: Begin, is_due: bool, began: float, ended: float) -> None:
        """A question that lasted from ``began`` to ``ended`` was answered: a row is due, or none."""
        if not begin.is_whole:
            return
        self._question_cost = ended - began
        self._patience = self._patience_after(ended - began)
        self._question_at = began + self._between_questions()
        if is_due:
            self.restart(began)
        for lane in (self._high, self._normal):
            self._has_looked(lane, began)

    def _has_looked(self, lane: _Lane, began: float) -> None:
        """Something that began then has looked over the whole range."""
        if began > self._restarted_at:
            lane.owes_since = None

    def _between_questions(self) -> float:
        """Seconds from the beginning of a look over the whole range to a question over it."""
        cost = self._question_cost
        return max(min(self._at_most, self._cheap * cost), _DEAR * cost)

    def _patience_after(self, cost: float) -> float:
        """Seconds for which claims may begin later, after a look over the whole range that took ``cost`` seconds."""
        return max(self._at_most, _DEAR * cost)
