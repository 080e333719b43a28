"""How many rows one statement may bring or write, when triggers of the application make each row slow. Pure.

For what becomes of the rows of a statement that has timed out, see parts.py and Settler.
"""

from __future__ import annotations

MOST_CLAIMED = 1 << 12
"""Rows in one claim, at most. CLAIM_BATCH is never larger."""

_HOLD_S = 5.0
_LONGEST_HOLD_S = 900.0


class BatchLimit:
    """Halves after a statement that timed out, and doubles again after a while; times are monotonic seconds.

    Args:
        most: rows in one statement while no statement times out.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = most
        self._hold = _HOLD_S
        self._grows_at = 0.0
        self._has_grown = False

    def rows(self, now: float) -> int:
        """The most rows that the next statement may have."""
        if self._limit < self._most and now >= self._grows_at:
            self._limit = min(self._most, 2 * self._limit)
            self._has_grown = True
            self._grows_at = now + self._hold
        return self._limit

    def timed_out(self, rows: int, now: float) -> None:
        """A statement with this number of rows has timed out, or has failed although none of the rows is at fault."""
        if self._has_grown:  # it has grown too early
            self._hold = min(_LONGEST_HOLD_S, 2 * self._hold)
            self._has_grown = False
        self._limit = max(1, min(self._limit, rows) // 2)
        self._grows_at = now + self._hold
