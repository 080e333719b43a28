"""Keeps registration tokens while FCM calls nearly every device dead. Pure.

A wrong project makes every registration token look dead, and purged tokens cannot be brought back. Users are counted,
not tokens, because one user may register a hundred dead devices.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from uuid import UUID

from listener.fcm.outcome import Disposition, Outcome

TOKEN_LOSS = "TOKEN_LOSS"  # noqa: S105  # an error code

_WINDOW = 100
_FEWEST = 20
_SHARE = 0.9


class TokenLossBreaker:
    """Watches the answers to sends at tokens, and disbelieves "dead" when nearly every user gets that answer.

    Each witness (see :func:`listener.limits.refusals.witness`) has one vote. It counts as alive if FCM accepted its
    latest push for any of its devices, else as dead. The votes of the last hundred witnesses count.
    """

    def __init__(self) -> None:
        # The push that a device of the witness accepted; None: its latest push found dead devices only.
        self._votes: OrderedDict[Hashable, UUID | None] = OrderedDict()

    def judge(self, witness: Hashable, push_id: UUID, outcome: Outcome) -> Outcome:
        """The outcome; or, when too many witnesses are dead to be believed, one that keeps the token.

        At least twenty witnesses must have voted. If all of them are dead, the new outcome pauses everything. If nine
        in ten are, FCM does accept some, so only this push waits and uses a try.
        """
        if outcome.disposition is Disposition.ACCEPTED:
            self.vote(witness, push_id)
            return outcome
        if outcome.disposition is not Disposition.DROP_TARGET:
            return outcome
        if self._votes.get(witness) == push_id:
            return outcome  # another device of this user has accepted the same push, so the project is right
        self.vote(witness, None)
        voted = len(self._votes)
        dead = sum(vote is None for vote in self._votes.values())
        if voted < _FEWEST or dead < _SHARE * voted:
            return outcome
        what = f"FCM calls the devices of {dead} of the last {voted} users dead ({outcome.code})"
        advice = (
            "Check that the app and FCM_PROJECT_ID belong to the same Firebase project. If the devices are really "
            "dead, set TOKEN_LOSS_BREAKER=false"
        )
        if dead == voted:
            reason = f"{what}; more likely the project or the key is wrong. No token is disabled. {advice}"
            return replace(
                outcome, disposition=Disposition.PAUSE, code=TOKEN_LOSS, reason=reason, uses_try=False
            )
        reason = f"{what}; this is hard to believe, so the token is kept and tried again. {advice}"
        return replace(outcome, disposition=Disposition.RETRY, code=TOKEN_LOSS, reason=reason)

    def vote(self, witness: Hashable, accepted: UUID | None) -> None:
        """The latest push of a witness was accepted by one of its devices; None: it found dead devices only."""
        self._votes[witness] = accepted
        self._votes.move_to_end(witness)
        if len(self._votes) > _WINDOW:
            self._votes.popitem(last=False)
