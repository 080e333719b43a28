"""How much to claim now, or how long to wait. Pure; times are monotonic seconds and are passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from listener.limits.claim_budget import NOTHING, ClaimBudget, budget_for, busiest_worth_a_claim

# A claim is a round trip, however few rows it brings. So a claim waits until it can bring a batch that is worth it, but
# not for long: the requests in flight may hang, and then the few free places must not stay empty.
_WAIT_FOR_BATCH_S = 0.05

# While pushes of normal priority may not be claimed, urgent ones still may. Their inserts usually notify, but not while
# a worker polls. So this worker looks for urgent pushes now and then, and less and less often while it finds none.
_URGENT_LOOK_S, _URGENT_LOOK_AT_MOST_S = 0.02, 0.08

_TIMER_S = 0.001  # the shortest wait of an event loop


@dataclass(frozen=True, slots=True)
class Load:
    """What this worker has claimed and not settled yet."""

    held: int
    """All of these rows."""
    sending: int
    """Of these, rows whose requests are under way."""
    set_aside: int
    """Of these, rows whose results wait because others have locked the rows, or because the database refuses them."""
    can_settle: bool = True
    """Whether results can be written. While they cannot, nothing more is claimed."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Claim now."""

    budget: ClaimBudget


@dataclass(frozen=True, slots=True)
class Wait:
    """Claim nothing now."""

    seconds: float | None
    """After which the decision may differ; None: only an event can change it."""


class SendLimit(Protocol):
    """How much may be sent, judging by FCM's answers; see :class:`listener.limits.health.FcmHealth`."""

    def limit(self, now: float, in_flight: int, most: int) -> int:
        """How many pushes may be in flight, at most ``most``."""
        ...

    def changes_in(self, now: float, in_flight: int) -> float | None:
        """Seconds until ``limit`` may grow by itself; None: not before a push in flight is settled."""
        ...


class QuotaLimit(Protocol):
    """How much FCM's quota allows; see :class:`listener.limits.quota.Quota`."""

    def room(self, now: float) -> tuple[int, int]:
        """How many pushes may be claimed now, and how many of these may have normal priority."""
        ...

    def opens_in(self, now: float) -> float:
        """Seconds until there may be more room; 0: there is room."""
        ...


class Admission:
    """Decides before each claim.

    Args:
        health: of FCM.
        quota: of FCM.
        max_in_flight: pushes that may be in flight at once.
        batch: rows that one claim may bring.
    """

    def __init__(self, health: SendLimit, quota: QuotaLimit, *, max_in_flight: int, batch: int) -> None:
        self._health = health
        self._quota = quota
        self._max_in_flight = max_in_flight
        self._batch = batch
        self._below_min_batch_since: float | None = None
        self._claimed_at = -math.inf
        self._urgent_look_s = _URGENT_LOOK_S
        self.busiest_worth_a_claim = busiest_worth_a_claim(max_in_flight, batch)
        """The most requests that may be under way while a claim is worth its round trip."""

    def notified(self) -> None:
        """Something may have been inserted, and it may be urgent."""
        self._urgent_look_s = _URGENT_LOOK_S

    def decide(self, now: float, load: Load) -> Claim | Wait:
        """Whether to claim now, with which budget; or how long to wait."""
        if not load.can_settle:
            return Wait(None)
        free = self._free(now, load)
        self._note_batch(now, free)
        if free.is_worth_a_claim or self._has_waited_for_batch(now):
            budget = free
        elif now - self._claimed_at >= self._urgent_look_s:
            budget = ClaimBudget(free.total, 0, 0)
        else:
            budget = NOTHING
        return Claim(budget) if budget.total else Wait(self._seconds_until_budget(now, load, free))

    def claimed(self, budget: ClaimBudget, found: int, now: float) -> None:
        """A claim with this budget, begun at ``now``, has brought ``found`` rows."""
        self._claimed_at = now
        if budget.normal:
            self._below_min_batch_since = None
        if found:
            self._urgent_look_s = _URGENT_LOOK_S
        elif not budget.normal:
            self._urgent_look_s = min(2 * self._urgent_look_s, _URGENT_LOOK_AT_MOST_S)

    def _free(self, now: float, load: Load) -> ClaimBudget:
        """The free places in flight that the quota allows to be taken."""
        taken = load.held - load.set_aside
        most = self._health.limit(now, taken, self._max_in_flight)
        if most == self._max_in_flight:
            # A result that waits to be written takes no place in flight; but it takes memory, which is bounded.
            taken = max(load.sending, load.held - self._max_in_flight)
        return budget_for(most, taken, self._batch).limited_to(*self._quota.room(now))

    def _note_batch(self, now: float, free: ClaimBudget) -> None:
        if free.normal == 0 or free.is_worth_a_claim:
            self._below_min_batch_since = None
        elif self._below_min_batch_since is None:
            self._below_min_batch_since = now

    def _has_waited_for_batch(self, now: float) -> bool:
        since = self._below_min_batch_since
        return since is not None and now - since >= _WAIT_FOR_BATCH_S

    def _seconds_until_budget(self, now: float, load: Load, free: ClaimBudget) -> float | None:
        """Seconds after which there may be a budget without anything being settled."""
        waits = (
            self._health.changes_in(now, load.held - load.set_aside),
            _left(now, self._below_min_batch_since, _WAIT_FOR_BATCH_S),
            _left(now, self._claimed_at, self._urgent_look_s) if free.total else None,
            self._quota.opens_in(now),
        )
        # 0: that limit allows a claim already, and another one does not.
        return min((wait for wait in waits if wait), default=None)


def _left(now: float, since: float | None, seconds: float) -> float | None:
    """Seconds until ``seconds`` have passed since a moment; None: there was no such moment."""
    return None if since is None else max(_TIMER_S, seconds - (now - since))
