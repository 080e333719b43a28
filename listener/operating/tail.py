"""Follows pushes as they end.

``updated_at`` is a time before the commit. So a row becomes visible with a time in the past, and two rows may become
visible in another order than their times. Each look therefore reads the last seconds again, and shows only the states
that were not shown yet; push, status and time identify a state. The changes of a transaction that stays open for longer
than ``OVERLAP`` are missed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from listener.operating.records import Ended, PushLine

OVERLAP = timedelta(seconds=10)
"""How long after its ``updated_at`` a change may be committed."""


class State(NamedTuple):
    """A state of a push. Each state is shown once."""

    push: UUID
    status: str
    at: datetime


@dataclass(frozen=True, slots=True)
class News:
    """What one look adds."""

    lines: Sequence[PushLine]
    """The oldest change first."""
    is_cut: bool
    """Whether more pushes ended than one look reads, so that some are missing before these."""


class Shown:
    """Remembers which states of the last seconds were shown. Pure.

    Args:
        start: the first moment of interest.
        overlap: how far back each look reads.
    """

    def __init__(self, start: datetime, overlap: timedelta = OVERLAP) -> None:
        self._start = start
        self._overlap = overlap
        self._states: set[State] = set()
        self._looked_at: datetime | None = None

    @property
    def since(self) -> datetime:
        """The time from which the next look reads."""
        return self._start if self._looked_at is None else max(self._start, self._looked_at - self._overlap)

    def news(self, found: Ended) -> News:
        """The part of a look's result that was not shown yet. The look has read from ``since`` on."""
        unseen = [
            line for line in found.lines if State(line.id, line.status, line.updated_at) not in self._states
        ]
        expected = self._start if self._looked_at is None else self._looked_at
        self._looked_at = found.now
        self._states = {
            State(line.id, line.status, line.updated_at)
            for line in found.lines
            if line.updated_at >= self.since
        } | {state for state in self._states if state.at >= self.since}
        is_cut = found.complete_since is not None and found.complete_since > expected
        return News(sorted(unseen, key=lambda line: (line.updated_at, line.id)), is_cut)


async def follow(
    look: Callable[[datetime], Awaitable[Ended]],
    rest: Callable[[], Awaitable[object]],
    shown: Shown,
) -> AsyncIterator[News]:
    """Yields what each look adds, without end. Raises what ``look`` raises.

    Args:
        look: returns what has ended since a time.
        rest: waits until the next look.
        shown: says where to begin.
    """
    while True:
        yield shown.news(await look(shown.since))
        await rest()
