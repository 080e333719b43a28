"""Sums up log records that are alike, so that ten thousand refused pushes are not ten thousand lines. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

WINDOW_S = 30.0
"""Seconds after which the records left out are summed up."""

FIRST = 10
"""Of the records that are alike, how many are written in each window. The others are counted."""

_MOST_KINDS = 1000

Kind = TypeVar("Kind", bound=Hashable)


class Repeats(Generic[Kind]):
    """Counts records of each kind. Times are monotonic seconds.

    Args:
        first: records of a kind that are written in each window.
        window: seconds of a window, which begins with the first record after the window before.
    """

    def __init__(self, *, first: int = FIRST, window: float = WINDOW_S) -> None:
        self._first = first
        self._window = window
        self._ends = 0.0
        self._counts: dict[Kind, int] = {}

    def admit(self, kind: Kind, now: float) -> bool:
        """Whether to write a record. If the window has ended, the caller calls ``take`` first."""
        if not self._counts:
            self._ends = now + self._window
        if kind not in self._counts and len(self._counts) >= _MOST_KINDS:
            return True
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return self._counts[kind] <= self._first

    def ended(self, now: float) -> bool:
        """Whether a window has ended and is not summed up."""
        return bool(self._counts) and now >= self._ends

    def left(self, now: float) -> float:
        """Seconds until the window ends."""
        return max(0.0, self._ends - now)

    def take(self) -> list[tuple[Kind, int]]:
        """Ends the window: how many records of each kind were left out of it."""
        counts, self._counts = self._counts, {}
        return [(kind, count - self._first) for kind, count in counts.items() if count > self._first]
