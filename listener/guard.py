"""Notices when FCM calls nearly every token dead: then it is not the tokens. Pure.

A wrong project or key makes every registration token look dead, and a token table that was purged for it cannot be
brought back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from listener.fcm.outcome import Kind, Outcome

_WINDOW = 100
_FEWEST = 20
_SHARE = 0.9


class TokenLossGuard:
    """Watches the answers to sends at tokens, and doubts "dead" when it is all that is heard."""

    def __init__(self) -> None:
        self._recent: deque[bool] = deque(maxlen=_WINDOW)
        self._dead = 0

    def judge(self, outcome: Outcome) -> Outcome:
        """The outcome, or a pause in its place when dead tokens are too many to be believed.

        Of the last hundred answers (at least twenty) that say whether a token lives, nine in ten must say dead.
        """
        if outcome.kind not in (Kind.ACCEPTED, Kind.DROP_TARGET):
            return outcome
        dead = outcome.kind is Kind.DROP_TARGET
        if len(self._recent) == _WINDOW:
            self._dead -= self._recent[0]
        self._recent.append(dead)
        self._dead += dead
        if not dead or len(self._recent) < _FEWEST or self._dead < _SHARE * len(self._recent):
            return outcome
        return replace(
            outcome,
            kind=Kind.PAUSE,
            code="TOKEN_LOSS",
            reason=f"FCM calls {self._dead} of the last {len(self._recent)} tokens dead ({outcome.code}); more likely "
            "the project or the key is wrong. No more tokens are disabled until one is accepted. If they are dead "
            "indeed, set TOKEN_LOSS_GUARD=false",
            uses_attempt=False,
        )
