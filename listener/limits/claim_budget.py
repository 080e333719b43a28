"""How many rows to claim, and how many of them may be of normal priority. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from listener.push import Push

_KEPT_FOR_HIGH = 8  # one part in so many


@dataclass(frozen=True, slots=True)
class ClaimBudget:
    """What one claim may bring: ``all`` rows, of which ``normal`` of normal priority.

    ``enough``: from how many of normal priority on a claim is worth its round trip.
    """

    all: int
    normal: int
    enough: int

    def within(self, all_: int, normal: int) -> ClaimBudget:
        """What of it is left when no more may be claimed than so many, and of normal priority so many of them."""
        return ClaimBudget(min(self.all, all_), min(self.normal, normal), min(self.enough, normal))

    @property
    def is_worth_a_claim(self) -> bool:
        """Whether there is no reason to wait for more room."""
        return 0 < self.enough <= self.normal

    def is_left_by(self, pushes: Sequence[Push]) -> bool:
        """Whether a claim into this room brought all that was due, as far as it looked for both priorities."""
        high = sum(push.priority == "high" for push in pushes)
        return len(pushes) - high < min(self.normal, self.all - high)


def kept_for_high(most: int) -> int:
    """Of ``most`` places in flight, those that pushes of normal priority never take."""
    return most // _KEPT_FOR_HIGH


def worth_a_claim_at(most: int, batch: int) -> int:
    """How many of ``most`` places may be taken for a claim of at most ``batch`` rows to be worth its round trip."""
    # The batch may be more than there will ever be room for.
    return max(0, most - kept_for_high(most) - (min(batch, most) + 1) // 2)


def claim_budget(most: int, held: int, batch: int) -> ClaimBudget:
    """ClaimBudget for a claim of at most ``batch`` rows, with ``held`` of ``most`` places taken."""
    free = max(0, most - held)
    open_to_all = most - kept_for_high(most)
    enough = open_to_all - worth_a_claim_at(most, batch)
    return ClaimBudget(min(free, batch), max(0, min(open_to_all - held, batch)), enough)
