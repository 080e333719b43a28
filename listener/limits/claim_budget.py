"""How many rows one claim may bring, and how many of them may be of normal priority. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from listener.push import Push

_RESERVED_FOR_HIGH = 8  # one place in eight


@dataclass(frozen=True, slots=True)
class ClaimBudget:
    """What one claim may bring."""

    total: int
    """Rows of either priority."""
    normal: int
    """Of these, rows of normal priority."""
    min_batch: int
    """The number of rows of normal priority that makes a claim worth its round trip."""

    def limited_to(self, total: int, normal: int) -> ClaimBudget:
        """The budget, cut down to what another limit allows."""
        return ClaimBudget(min(self.total, total), min(self.normal, normal), min(self.min_batch, normal))

    @property
    def is_worth_a_claim(self) -> bool:
        """Whether a claim is worth its round trip now."""
        return 0 < self.min_batch <= self.normal

    def exhausts_queue(self, pushes: Sequence[Push]) -> bool:
        """Whether a claim with this budget, which has brought ``pushes``, has left no due row behind.

        False for a claim of high priority only (``normal`` is 0), because it has not looked for normal priority.
        """
        high = sum(1 for push in pushes if push.priority == "high")
        return len(pushes) - high < min(self.normal, self.total - high)


NOTHING = ClaimBudget(0, 0, 0)


def reserved_for_high(max_in_flight: int) -> int:
    """Places in flight that pushes of normal priority never take."""
    return max_in_flight // _RESERVED_FOR_HIGH


def busiest_worth_a_claim(max_in_flight: int, batch: int) -> int:
    """The most places that may be taken while a claim of at most ``batch`` rows is worth its round trip."""
    # The batch may be larger than the number of places.
    return max(0, max_in_flight - reserved_for_high(max_in_flight) - (min(batch, max_in_flight) + 1) // 2)


def budget_for(max_in_flight: int, taken: int, batch: int) -> ClaimBudget:
    """The budget of a claim of at most ``batch`` rows, with ``taken`` of ``max_in_flight`` places taken."""
    free = max(0, max_in_flight - taken)
    open_to_normal = max_in_flight - reserved_for_high(max_in_flight)
    min_batch = open_to_normal - busiest_worth_a_claim(max_in_flight, batch)
    return ClaimBudget(min(free, batch), max(0, min(open_to_normal - taken, batch)), min_batch)
