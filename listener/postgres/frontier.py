"""From which due time on a worker looks at the queue. Pure; times of this process are monotonic, and passed in.

While some transaction keeps an old snapshot, the index holds an entry for every push that was sent since. A look that
begins at the oldest due time steps over all of them. So a worker begins where it has claimed everything that it could
see. What comes before that place later, comes there in one of these ways:

- A transaction that was open for long commits. A row is due when it is written, or later: the trigger
  push_listener_never_early sees to that. So the rows of a transaction lie behind the claim before the one whose
  snapshot first shows the transaction as running. When it has ended, the worker begins there once more.
- The application had locked the row, a row that was passed over may be claimed again, or the triggers are disabled.
  Nothing tells of these, so now and then the worker looks over the whole range:
  - As long as such a look is cheap, a claim over the whole range follows 0.8 s after a claim that began later, unless a
    question does. Before the worker sleeps it asks when the next row is due, over the whole range. If it has done so
    just before, it asks within a shorter range, and sleeps only until it may ask again.
  - When such a look is dear, it is made beside the claims, on another connection and seldom. The next claim takes the
    rows that it has found, by their ids, besides its own. Questions begin where claims do.

Where to begin is thus a guess that saves time. If it is wrong, a row is found by the next look over the whole range.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

# Timers fire that much too early.
_TIMERS_EARLY_S = 0.01

# A row is due at most so long before it is written. The trigger push_listener_never_early has the same number.
_WRITTEN_LATE_S = 0.5

# What was sent while a transaction was open, claims step over at once if it was open for no longer. Time in which the
# worker had nothing to do does not count: nothing was sent.
_OPEN_FOR_LONG_S = 5.0
_IDLE_AFTER_S = 0.5

_FIRST_AHEAD_S = 1.0

# A claim also writes, so it takes longer than a look.
_SLOW_CLAIMS = 2.0


@dataclass(frozen=True, slots=True)
class Begin:
    """Where a look at the queue begins: due times in Unix seconds, by the database's clock."""

    high: float = -math.inf
    """For high priority."""
    normal: float = -math.inf
    """For all other priorities."""
    ahead: float = math.inf
    """A question after the next due row asks for rows that are due within so many seconds."""
    early: Sequence[UUID] = ()
    """A claim also takes these rows, which are due before."""

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
    running: Iterable[str] = ()
    """The transactions that had not ended, and may have written rows that the claim does not see."""


@dataclass(frozen=True, slots=True)
class Behind:
    """A look at what lies before the claims: from one due time to another, in each lane."""

    begin: float
    high: float
    normal: float


@dataclass(slots=True)
class _Lane:
    floor: float = -math.inf
    owes_since: float | None = None
    """When a claim began that was not over the whole range, if nothing over the whole range has followed."""


class Frontier:
    """How far one worker has claimed, and when it has to look at what lies before.

    Args:
        margin: seconds by which a look begins before what is claimed. The rows of a transaction that is open for no
            longer are found at once.
        at_most: seconds for which claims may begin later, while looks over the whole range are cheap.
        cheap: a question over the whole range that takes a second may be repeated after so many, and after ``at_most``.
        dear: a look over the whole range that takes more seconds is made beside the claims.
        seldom: and repeated after so many times its duration.
    """

    def __init__(
        self,
        *,
        margin: float = 1.0,
        at_most: float = 0.8,
        cheap: float = 20.0,
        dear: float = 0.05,
        seldom: float = 20.0,
    ) -> None:
        self._margin = margin
        self._at_most = at_most
        self._cheap = cheap
        self._dear = dear
        self._seldom = seldom
        self._high, self._normal = _Lane(), _Lane()
        self._lanes = (self._high, self._normal)
        self.cost = 0.0
        """Seconds that the last look over the whole range took. Claims do not count unless they are slow."""
        self._question_at = -math.inf
        self._looked_at = -math.inf
        self._restarted_at = -math.inf
        self._claimed_at = -math.inf
        self._claimed_now = -math.inf  # by the database's clock
        self._busy = 0.0  # seconds, without those in which there was nothing to do
        # Transactions: from which due time on their rows may be, and how long the worker was busy until then.
        self._running: dict[str, tuple[float, float]] = {}
        self._suspect = math.inf
        self._early: list[UUID] = []

    @property
    def is_dear(self) -> bool:
        """Whether looks over the whole range are made beside the claims."""
        return self.cost > self._dear

    def restart(self, now: float) -> None:
        """Rows may lie before: a look over the whole range is to be made at once."""
        self._restarted_at = now
        for lane in self._lanes:
            lane.owes_since = -math.inf

    def owe(self, now: float) -> None:
        """A look over the whole range is to be made some time, whether or not something is claimed."""
        for lane in self._lanes:
            lane.owes_since = now if lane.owes_since is None else lane.owes_since

    def floors(self) -> Begin:
        """Where claims begin, if nothing is known to lie before."""
        return Begin(self._high.floor, self._normal.floor)

    def found(self, early: Iterable[UUID]) -> None:
        """These rows are due, and may lie before. Each is claimed once: if that fails, a later look finds it again."""
        self._early += early

    def begin_claim(self, now: float, most: int, normal: int) -> Begin:
        """Where a claim of at most so many rows begins, and of so many of normal priority."""
        lanes = self._lanes if normal else (self._high,)
        owes = any(lane.owes_since is not None and now >= lane.owes_since + self._at_most for lane in lanes)
        if owes and not self.is_dear:
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
        """Where a question begins, when the next row is due."""
        if self.is_dear:
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
            self.restart(began)
        covered = {}
        for lane, through, first in (
            (self._high, seen.high, begin.high),
            (self._normal, seen.normal, begin.normal),
        ):
            if through is None:
                continue
            covered[id(lane)] = first
            lane.floor = min(through, seen.now - self._margin)
            if begin.is_whole:
                self._has_looked(lane, began)
        if begin.is_whole:
            if ended - began > _SLOW_CLAIMS * self._dear:
                # The claim may have been slow for another reason. A look beside the claims tells.
                self.cost = ended - began
                self.restart(ended)
            if seen.high is not None and seen.normal is not None:
                self._question_at = began + self._between_questions()
        first, busy = self._first_ended(seen)
        self._busy += min(began - self._claimed_at, _IDLE_AFTER_S)
        owing = [lane for lane in self._lanes if first < covered.get(id(lane), math.inf)]
        if owing and self.is_dear and busy < self._busy - _OPEN_FOR_LONG_S:
            self._suspect = min(self._suspect, first)
        else:
            for lane in owing:
                lane.floor = min(lane.floor, first)
        self._claimed_at, self._claimed_now = began, seen.now

    def _first_ended(self, seen: Seen) -> tuple[float, float]:
        """From which due time on the rows of transactions may be that have ended since they were seen running."""
        known, since = self._running, (self._claimed_now - _WRITTEN_LATE_S, self._busy)
        if self._claimed_at == -math.inf:
            since = (-math.inf, -math.inf)
        self._running = {each: known.pop(each, since) for each in seen.running}
        return min(known.values(), default=(math.inf, math.inf))

    def asked(self, begin: Begin, is_due: bool, began: float, ended: float) -> None:
        """A question that lasted from ``began`` to ``ended`` was answered: a row is due, or none."""
        if not begin.is_whole:
            return
        self.cost = ended - began
        self._question_at = began + self._between_questions()
        if is_due:
            self.restart(began)
        for lane in self._lanes:
            self._has_looked(lane, began)

    def look_in(self, now: float) -> float | None:
        """In how many seconds a look beside the claims is due; None: not as things stand."""
        if not self.is_dear or not (self._owes or self._suspect < math.inf):
            return None
        pause = self._at_most if self._suspect < math.inf else self._between_looks()
        return max(0.0, self._looked_at + pause - now)

    def begin_look(self, now: float) -> Behind:
        """A look beside the claims begins."""
        is_whole = self._owes and now >= self._looked_at + self._between_looks()
        begin = -math.inf if is_whole else self._suspect
        self._suspect, self._looked_at = math.inf, now
        if is_whole:
            for lane in self._lanes:  # a claim that begins from now on owes the next look
                lane.owes_since = None
        return Behind(begin, self._high.floor, self._normal.floor)

    @property
    def _owes(self) -> bool:
        return any(lane.owes_since is not None for lane in self._lanes)

    def _between_looks(self) -> float:
        is_urgent = any(lane.owes_since == -math.inf for lane in self._lanes)
        return self._at_most if is_urgent else max(self._at_most, self._seldom * self.cost)

    def looked(self, look: Behind, early: Sequence[UUID], began: float, ended: float) -> None:
        """A look beside the claims has found these rows."""
        self.found(early)
        if look.begin == -math.inf:
            self.cost = ended - began

    def _has_looked(self, lane: _Lane, began: float) -> None:
        """Something that began then has looked over the whole range."""
        self._looked_at = began
        if began > self._restarted_at:
            lane.owes_since = None

    def _between_questions(self) -> float:
        """Seconds from the beginning of a look over the whole range to a question over it."""
        return min(self._at_most, self._cheap * self.cost)
