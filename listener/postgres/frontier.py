"""Decides from which due time on a worker looks at the queue. Pure; times of this process are monotonic, and passed in.

While some transaction keeps an old snapshot, the index holds an entry for every push that was sent since. A look that
begins at the oldest due time steps over all of them. So a worker remembers for each lane a *floor*, the due time up to
which it has claimed everything that it could see, and begins there. A worker looks in three ways:

- A *claim* takes due rows.
- A *question* asks, before the worker sleeps, when the next row is due.
- A *look behind* searches below the floors, on another connection, while claims go on. The next claim takes the rows
  that it has found, by their ids, in addition to its own. If there are many, claims go back to the first of them.

Each may be *whole*: over the whole range of due times.

A row comes to lie below the floor in one of these ways:

- A transaction that was open for long commits. A row is due when it is written, or later: the trigger
  push_listener_never_early ensures that. So the rows of a transaction are not due before the last claim whose snapshot
  does not show the transaction yet. When the transaction has ended, the worker begins at the time of that claim once
  more.
- The application had locked the row, a row that was passed over may be claimed again, or the triggers are disabled.
  Nothing reports these events, so now and then a look is whole:
  - As long as whole looks are cheap, a whole claim follows 0.8 s after a claim that began at the floor, unless a whole
    question comes before. Before the worker sleeps it asks a whole question. If it asked one just before, it asks
    about a shorter range, and sleeps only until it may ask a whole question again.
  - When whole looks are expensive, they are looks behind, and seldom. Questions begin at the floor, as claims do.

The floor is thus a guess that saves time. If it is wrong, the next whole look finds the row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

# Timers may fire this much too early.
_TIMERS_EARLY_S = 0.01

# A row is due at most this long before it is written. The trigger push_listener_never_early has the same number.
_WRITTEN_LATE_S = 0.5

# If a transaction was open for no longer than this, the next claim steps over all that was sent meanwhile to find its
# rows. Time in which the worker had nothing to do does not count, because nothing was sent.
_OPEN_FOR_LONG_S = 5.0
_IDLE_AFTER_S = 0.5

_FIRST_AHEAD_S = 1.0

# A claim also writes, so it takes longer than a look.
_SLOW_CLAIMS = 2.0


@dataclass(frozen=True, slots=True)
class Begin:
    """Where a claim or a question begins: due times in Unix seconds, by the database's clock."""

    high: float = -math.inf
    """For high priority."""
    normal: float = -math.inf
    """For all other priorities."""
    ahead: float = math.inf
    """Of a question: it asks for rows that are due within this number of seconds."""
    early: Sequence[UUID] = ()
    """A claim also takes these rows, which are due earlier: a look behind, or a rescue, has found them."""

    @property
    def is_whole(self) -> bool:
        """Whether it is over the whole range of due times."""
        return self.high == self.normal == -math.inf


WHOLE = Begin()


@dataclass(frozen=True, slots=True)
class Seen:
    """What a claim has seen, in Unix seconds by the database's clock."""

    now: float
    high: float | None
    """Before this time the claim has left no due row of high priority, except locked and excluded ones. None: it did
    not look for high priority."""
    normal: float | None
    """The same for all other priorities."""
    running: Iterable[str] = ()
    """The transactions that had not ended, and may have written rows that the claim does not see."""


@dataclass(frozen=True, slots=True)
class RangeBehind:
    """The range of a look behind: from one due time to the floor of each lane."""

    begin: float
    high: float
    normal: float


class RowBehind(NamedTuple):
    """A row that a look behind has found."""

    id: UUID
    lane: int
    """0: high priority; 1: all other priorities."""
    due_at: float
    """Unix seconds, by the database's clock."""


@dataclass(slots=True)
class _Lane:
    floor: float = -math.inf
    owes_since: float | None = None
    """When the first claim since the last whole look began at the floor; None: none has.

    -inf: a whole look is to be made at once.
    """


class Frontier:
    """How far one worker has claimed, and when its next look has to be whole.

    Args:
        margin: seconds by which the floor lies before the time of a claim, at least. The rows of a transaction that is
            open for no longer than this are found at once.
        at_most: seconds for which claims may begin at the floor, while whole looks are cheap.
        pause_after_question: between two whole questions, in durations of one; never longer than ``at_most``.
        expensive: once a whole look takes more seconds than this, whole looks are made as looks behind.
        pause_after_look: between two whole looks behind: this many times the duration of the shorter of the last two
            whole looks; never less than ``at_most``.
        most_behind: the most rows of each lane that a look behind returns. If it returns as many, there may be more.
    """

    def __init__(
        self,
        *,
        margin: float = 1.0,
        at_most: float = 0.8,
        pause_after_question: float = 20.0,
        expensive: float = 0.05,
        pause_after_look: float = 20.0,
        most_behind: int = 1000,
    ) -> None:
        self.most_behind = most_behind
        self._margin = margin
        self._at_most = at_most
        self._pause_after_question = pause_after_question
        self._expensive = expensive
        self._pause_after_look = pause_after_look
        self._high, self._normal = _Lane(), _Lane()
        self._lanes = (self._high, self._normal)
        self.cost = 0.0
        """Seconds that the last whole look took. Claims do not count unless they are slow."""
        self._cost_before = 0.0  # of the whole look before; at first 0, so that the second look follows soon
        self._question_at = -math.inf  # when the next whole question may be asked
        self._looked_at = -math.inf
        self._urgent_at = -math.inf  # when a whole look was last wanted at once
        self._claimed_at = -math.inf
        self._claimed_now = -math.inf  # by the database's clock
        self._busy = 0.0  # seconds, without those in which there was nothing to do
        # Transactions that the last claim saw running. For each, the earliest time at which its rows may be due, and
        # how long the worker had been busy at that time.
        self._running: dict[str, tuple[float, float]] = {}
        # The earliest due time that rows of an ended long transaction may have; inf: there is no such transaction.
        self._ended_from = math.inf
        self._early: list[UUID] = []

    @property
    def is_expensive(self) -> bool:
        """Whether whole looks are expensive, and so are made as looks behind."""
        return self.cost > self._expensive

    def want_whole_look_at_once(self, now: float) -> None:
        """Rows may lie below the floor: the next look is to be whole."""
        self._urgent_at = now
        for lane in self._lanes:
            lane.owes_since = -math.inf

    def want_whole_look(self, now: float) -> None:
        """A whole look is to be made some time, whether or not something is claimed."""
        for lane in self._lanes:
            lane.owes_since = now if lane.owes_since is None else lane.owes_since

    def floors(self) -> Begin:
        """Where claims begin that are not whole."""
        return Begin(self._high.floor, self._normal.floor)

    def found_early(self, early: Iterable[UUID]) -> None:
        """These rows are due, and may lie below the floor. The next claims take them.

        Each is claimed once: if that fails, a later look finds it again.
        """
        self._early += early

    def begin_claim(self, now: float, most: int, normal: int) -> Begin:
        """Where a claim begins.

        Args:
            now: when it begins.
            most: the rows that it may bring.
            normal: of these, the rows of normal priority.
        """
        lanes = self._lanes if normal else (self._high,)
        owes = any(lane.owes_since is not None and now >= lane.owes_since + self._at_most for lane in lanes)
        if owes and not self.is_expensive:
            self._early.clear()
            return WHOLE
        for lane in lanes:
            lane.owes_since = now if lane.owes_since is None else lane.owes_since
        return Begin(self._high.floor, self._normal.floor, early=self._take_early(min(most, normal)))

    def _take_early(self, most: int) -> Sequence[UUID]:
        if not self._early:
            return ()
        taken, self._early = self._early[:most], self._early[most:]
        return taken

    def begin_question(self, now: float) -> Begin:
        """Where a question begins."""
        if self.is_expensive:
            # The leases of what was sent lately have left entries that end in the future. So the range grows with the
            # time for which nothing was claimed.
            return Begin(self._high.floor, self._normal.floor, max(_FIRST_AHEAD_S, now - self._claimed_at))
        if now >= self._question_at - _TIMERS_EARLY_S:
            return WHOLE
        begin = Begin(self._high.floor, self._normal.floor, self._question_at - now)
        return WHOLE if begin.is_whole else begin

    def claimed(self, begin: Begin, seen: Seen, began: float, ended: float) -> None:
        """A claim that lasted from ``began`` to ``ended`` has seen this."""
        if seen.now < self._claimed_now - self._margin:  # the database's clock was set back
            self.want_whole_look_at_once(began)
        looked_from = [math.inf, math.inf]  # inf: the claim has not looked at the lane
        for n, (lane, through, first) in enumerate(
            ((self._high, seen.high, begin.high), (self._normal, seen.normal, begin.normal))
        ):
            if through is None:
                continue
            looked_from[n] = first
            # A look behind that has ended meanwhile may have sent the next claim back.
            if lane.floor >= first:
                lane.floor = min(through, seen.now - self._margin)
            if begin.is_whole:
                self._has_looked(lane, began)
        if begin.is_whole:
            if ended - began > _SLOW_CLAIMS * self._expensive:
                # The claim may have been slow for another reason. A look behind tells.
                self._note_cost(ended - began)
                self.want_whole_look_at_once(ended)
            if seen.high is not None and seen.normal is not None:
                self._question_at = began + self._between_questions()
        first, busy = self._first_ended(seen)
        self._busy += min(began - self._claimed_at, _IDLE_AFTER_S)
        self._go_back(first, busy, looked_from)
        self._claimed_at, self._claimed_now = began, seen.now

    def _go_back(self, first: float, busy: float, looked_from: Sequence[float]) -> None:
        """Makes a later look search from ``first`` on, where the last claim has not looked.

        That is the next claim; or a look behind, if the worker has been busy for long since ``busy``.
        """
        missed = [lane for lane, begin in zip(self._lanes, looked_from, strict=True) if first < begin]
        if missed and self.is_expensive and busy < self._busy - _OPEN_FOR_LONG_S:
            self._ended_from = min(self._ended_from, first)
        else:
            for lane in missed:
                lane.floor = min(lane.floor, first)

    def _first_ended(self, seen: Seen) -> tuple[float, float]:
        """Looks for transactions that have ended since the last claim.

        Returns the earliest time at which their rows may be due (inf: none has ended), and how long the worker had been
        busy at that time.
        """
        first_claim = self._claimed_at == -math.inf
        new = (-math.inf, -math.inf) if first_claim else (self._claimed_now - _WRITTEN_LATE_S, self._busy)
        ended = self._running  # the next line removes those that still run
        self._running = {each: ended.pop(each, new) for each in seen.running}
        return min(ended.values(), default=(math.inf, math.inf))

    def answered(self, begin: Begin, is_due: bool, began: float, ended: float) -> None:
        """A question that lasted from ``began`` to ``ended`` was answered: a row is due, or none."""
        if not begin.is_whole:
            return
        self._note_cost(ended - began)
        self._question_at = began + self._between_questions()
        if is_due:
            self.want_whole_look_at_once(began)
        for lane in self._lanes:
            self._has_looked(lane, began)

    def look_behind_in(self, now: float) -> float | None:
        """In how many seconds a look behind is due; None: none is due."""
        if not self.is_expensive or not (self._owes or self._ended_from < math.inf):
            return None
        pause = self._at_most if self._ended_from < math.inf else self._between_looks()
        return max(0.0, self._looked_at + pause - now)

    def begin_look_behind(self, now: float) -> RangeBehind:
        """A look behind begins; returns its range."""
        is_whole = self._owes and now >= self._looked_at + self._between_looks()
        begin = -math.inf if is_whole else self._ended_from
        self._ended_from, self._looked_at = math.inf, now
        if is_whole:
            for lane in self._lanes:  # a claim that begins from now on owes the next look
                lane.owes_since = None
        return RangeBehind(begin, self._high.floor, self._normal.floor)

    def looked_behind(
        self, look: RangeBehind, found: Sequence[RowBehind], began: float, ended: float
    ) -> None:
        """A look behind has found these rows.

        If there may be more rows, a transaction that was open for long has inserted many, as a broadcast does. So the
        claims go back to the first of the rows that were found, and another look searches before that one.
        """
        if look.begin == -math.inf:
            self._note_cost(ended - began)
        for number, lane in enumerate(self._lanes):
            rows = [row for row in found if row.lane == number]
            if len(rows) < self.most_behind:
                self.found_early(row.id for row in rows)
            else:
                lane.floor = min(lane.floor, *(row.due_at for row in rows))
                self.want_whole_look_at_once(ended)

    def _note_cost(self, seconds: float) -> None:
        self._cost_before, self.cost = self.cost, seconds

    @property
    def _owes(self) -> bool:
        """Whether a whole look is to be made."""
        return any(lane.owes_since is not None for lane in self._lanes)

    def _between_looks(self) -> float:
        if any(lane.owes_since == -math.inf for lane in self._lanes):
            return self._at_most
        # If one look took long, the machine may only have stood still. So the shorter of the last two counts.
        return max(self._at_most, self._pause_after_look * min(self.cost, self._cost_before))

    def _has_looked(self, lane: _Lane, began: float) -> None:
        """A whole look that began at ``began`` has ended."""
        self._looked_at = began
        if began > self._urgent_at:  # it does not count if it was already under way when one was wanted
            lane.owes_since = None

    def _between_questions(self) -> float:
        """Seconds from the beginning of a whole look to the next whole question."""
        return min(self._at_most, self._pause_after_question * self.cost)
