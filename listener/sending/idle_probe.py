"""Finds out whether FCM would accept a push, while none is sent."""

from __future__ import annotations

import asyncio
import time

import structlog

from listener.fcm.outcome import Disposition, Outcome
from listener.limits.health import FcmHealth
from listener.sending.fcm_question import FcmQuestion

log = structlog.get_logger(__name__)


class IdleProbe:
    """Asks FCM to validate a message whenever FCM has not answered for some minutes.

    Otherwise only the first push of the morning would show that a permission was revoked at night. A refusal is
    reported and pauses nothing, because FCM may accept the next push.

    Args:
        interval: seconds without an answer after which FCM is asked.
    """

    def __init__(self, question: FcmQuestion, health: FcmHealth, *, interval: float) -> None:
        self._question = question
        self._health = health
        self._interval = interval
        self._refused_at: float | None = None

    @property
    def is_refused(self) -> bool:
        """Whether FCM has refused the last question, and accepted no push since."""
        return self._refused_at is not None and self._health.accepted_at < self._refused_at

    async def run(self) -> None:
        """Works until cancelled."""
        asked_at = time.monotonic()
        while True:
            silent_since = max(asked_at, self._health.answered_at)
            wait = silent_since + self._interval - time.monotonic()
            if wait > 0.0:
                await asyncio.sleep(wait)
                continue
            asked_at = time.monotonic()
            answer = await self._question.answer()
            if answer is not None:
                self._learn(answer)

    def _learn(self, answer: Outcome) -> None:
        if answer.disposition is Disposition.ACCEPTED:
            if self._refused_at is not None:
                log.info("FCM accepts a test message again")
            self._refused_at = None
        elif answer.is_refusal:
            if self._refused_at is None:
                log.error("FCM refuses a test message", code=answer.code, reason=answer.reason)
            self._refused_at = time.monotonic()
