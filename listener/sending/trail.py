"""Records the way of each push: in the log at LOG_LEVEL=debug, and in traces."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import structlog

from listener.fcm.outcome import Outcome
from listener.push import Push, Settlement, Target
from listener.tracing import Answer, Tracing

log = structlog.get_logger(__name__)


class Trail:
    """Records what happens to each push.

    Args:
        tracing: gets the same facts as the log.
        worker: the id of the worker.
    """

    def __init__(self, tracing: Tracing, worker: int) -> None:
        self._tracing = tracing
        self._worker = worker
        self._logs = logging.getLogger(__name__).isEnabledFor(logging.DEBUG)
        self.is_on = self._logs or tracing.is_on
        """Whether anything is recorded. Check it before each call, so that a push otherwise costs nothing here."""

    def claimed(self, pushes: Sequence[Push], began: float) -> None:
        """A claim that began at ``began`` (monotonic seconds) has brought these pushes."""
        self._tracing.claimed(pushes, self._worker, began, time.monotonic())
        if self._logs:
            for push in pushes:
                log.debug(
                    "claimed",
                    push_id=str(push.id),
                    attempt=push.attempt,
                    worker=self._worker,
                    waited_s=round(push.waited, 3),
                )

    def answered(self, push: Push, target: Target, outcome: Outcome, began: float, ended: float) -> None:
        """A request for one target has ended, with or without an answer."""
        self._tracing.answered(
            push,
            Answer(
                began,
                ended,
                target.kind.value,
                target.platform,
                outcome.disposition.value,
                outcome.code,
                outcome.http_status,
            ),
        )
        if self._logs:
            log.debug(
                "answered",
                push_id=str(push.id),
                attempt=push.attempt,
                target=target.kind.value,
                platform=target.platform,
                outcome=outcome.disposition.value,
                code=outcome.code,
                http_status=outcome.http_status,
                ms=round(1000 * (ended - began)),
            )

    def settled(self, settlement: Settlement, fate: str) -> None:
        """The result of an attempt is written, or will never be; ``fate`` says which."""
        self._tracing.settled(settlement, fate, time.monotonic())
        if self._logs:
            decision = settlement.decision
            log.debug(
                "settled",
                push_id=str(settlement.push_id),
                attempt=settlement.attempt,
                status=decision.status.value,
                error_code=decision.code,
                again_in_s=None if decision.delay is None else round(decision.delay, 3),
                fate=fate,
            )
