"""Distinguishes a refusal of everything from the refusal of one push. Pure; times are monotonic seconds.

FCM may refuse one push for ever with an answer that sounds as if our configuration were wrong. While FCM accepts
others, only that push waits, and becomes dead in the end.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum, auto
from uuid import UUID

from listener.push import Push, Target

_ENOUGH = 3
VOTES = 20
"""The votes of this number of witnesses count, the latest ones."""
_NEARLY_ALL = 0.9
_REMEMBERED = 10_000


def witness(push: Push, target: Target) -> Hashable:
    """Names the witness of an answer: the user of the push, or else a hash of its target."""
    return push.user_id or hash((target.kind, target.value))


class Verdict(Enum):
    """What a refusal concerns: one push, one user or everybody."""

    ALL = auto()
    """Everybody: three witnesses were refused, and none was accepted in between."""
    DOUBT = auto()
    """Perhaps everybody: nothing was accepted lately."""
    ONE = auto()
    """This push, as far as is known."""


class Evidence:
    """Whether FCM refuses all pushes, or all pushes to one platform.

    Args:
        quiet: seconds after the last acceptance from which one refusal is enough to doubt.
    """

    def __init__(self, quiet: float = math.inf) -> None:
        self._quiet = quiet
        self._accepted = -math.inf  # when the latest of the accepted requests was made
        self._refused: dict[Hashable, float] = {}  # witness: when the refused request was made

    def accept(self, asked: float) -> None:
        """FCM has accepted a request that was made at ``asked``."""
        self._accepted = max(self._accepted, asked)

    def accepted_since(self, moment: float) -> bool:
        """Whether FCM has accepted a request that was made after ``moment``."""
        return self._accepted > moment

    def refuse(self, who: Hashable, asked: float) -> Verdict:
        """Notes a refusal of a request made at ``asked``; returns what it concerns."""
        self._refused[who] = asked
        self._refused = {each: at for each, at in self._refused.items() if at > self._accepted}
        if len(self._refused) >= _ENOUGH:
            self._refused.clear()
            return Verdict.ALL
        return Verdict.DOUBT if asked - self._accepted > self._quiet else Verdict.ONE


class Votes:
    """Whether nearly all of the latest witnesses were refused. Each witness has one vote, its latest."""

    def __init__(self) -> None:
        self._votes: OrderedDict[Hashable, bool] = OrderedDict()

    def note(self, who: Hashable, *, refused: bool) -> None:
        """Notes an answer."""
        self._votes[who] = refused
        self._votes.move_to_end(who)
        if len(self._votes) > VOTES:
            self._votes.popitem(last=False)

    def nearly_all_refused(self, *, fewest: int) -> bool:
        """Whether at least ``fewest`` witnesses have voted, and at least nine in ten of them were refused."""
        refused = sum(self._votes.values())
        return len(self._votes) >= fewest and refused >= _NEARLY_ALL * len(self._votes)


@dataclass(slots=True)
class Refused:
    """A push that FCM has refused."""

    attempt: int
    """The latest attempt that was refused."""
    first: float
    """When its first refusal came."""
    latest: float
    times: int = 1
    """Attempts that were refused."""
    uses_try: bool = False
    """Whether the latest attempt uses a try: FCM has accepted others since the attempt before it."""


class RefusedPushes:
    """The pushes that FCM has refused; it forgets the oldest when they are too many."""

    def __init__(self) -> None:
        self._pushes: OrderedDict[UUID, Refused] = OrderedDict()

    def __contains__(self, push_id: UUID) -> bool:
        return push_id in self._pushes

    def note(self, push: Push, evidence: Evidence, now: float) -> Refused:
        """Notes a refusal of the push; ``evidence`` knows what else FCM has accepted."""
        refused = self._pushes.setdefault(push.id, Refused(push.attempt, now, now))
        if refused.attempt != push.attempt:  # otherwise it is another device of the same attempt
            refused.attempt = push.attempt
            refused.times += 1
            refused.uses_try = evidence.accepted_since(refused.latest)
        refused.latest = now
        self._pushes.move_to_end(push.id)
        if len(self._pushes) > _REMEMBERED:
            self._pushes.popitem(last=False)
        return refused
