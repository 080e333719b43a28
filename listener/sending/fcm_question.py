"""Asks whether FCM works, with a message that FCM only validates. No device gets it."""

from __future__ import annotations

import asyncio
import math
import time

from listener.fcm.outcome import Disposition, Outcome
from listener.fcm.sender import Sender
from listener.fcm.transports.base import Outgoing
from listener.limits.health import FcmHealth
from listener.metrics.own import Metrics

_QUESTION = Outgoing(
    lambda: b'{"validate_only":true,"message":{"topic":"push-listener","data":{"question":"are you there"}}}'
)


class FcmQuestion:
    """Asks FCM one question at a time, and not often. All callers that wait share one answer.

    Args:
        health: learns from each answer.
        ask_again: seconds from one answer to the next question, at least.
    """

    def __init__(
        self, sender: Sender, health: FcmHealth, metrics: Metrics, *, ask_again: float = 5.0
    ) -> None:
        self._sender = sender
        self._health = health
        self._metrics = metrics
        self._ask_again = ask_again
        self._asking: asyncio.Task[None] | None = None
        self._answer: Outcome | None = None
        self._answered_at = -math.inf

    def ask(self) -> None:
        """Asks, and does not wait; does nothing if a question is under way or was answered just before."""
        if self._asking is None and time.monotonic() - self._answered_at >= self._ask_again:
            self._asking = asyncio.create_task(self._ask())

    async def wait_for_health(self, seconds: float) -> None:
        """Asks, and waits until ``health`` knows the answer, at most for ``seconds``."""
        self.ask()
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=seconds)

    async def answer(self) -> Outcome | None:
        """Asks; returns FCM's answer, or None if another question was answered just before."""
        self.ask()
        if self._asking is None:
            return None
        await asyncio.wait({self._asking})
        return self._answer

    async def _ask(self) -> None:
        began = time.monotonic()
        try:
            outcome = await self._sender.send(_QUESTION)
            self._health.answered(outcome, began, time.monotonic())
            self._metrics.probes.labels(_label(outcome)).inc()
            self._answer = outcome
        finally:
            self._asking, self._answered_at = None, time.monotonic()


def _label(outcome: Outcome) -> str:
    if outcome.disposition is Disposition.ACCEPTED:
        return "accepted"
    return "refused" if outcome.is_refusal else "failed"
