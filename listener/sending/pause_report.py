"""Logs and exports whether sending is paused."""

from __future__ import annotations

import structlog

from listener.limits.health import FcmHealth, Pause
from listener.metrics import Metrics
from listener.wakeup.look_signal import LookSignal

log = structlog.get_logger(__name__)


class PauseReport:
    """Tells, once, when sending is paused, is paused for another kind of reason, or goes on."""

    def __init__(self, health: FcmHealth, look: LookSignal, metrics: Metrics) -> None:
        self._health = health
        self._look = look
        self._metrics = metrics
        self._told: Pause | None = None

    def tell(self) -> None:
        """Called after each answer from FCM."""
        kind = self._health.pause_kind
        if kind == self._told:
            return
        if kind is None:
            log.info("sending resumed")
            self._look.capacity()
        else:
            log.error("sending paused", reason=self._health.reason)
        self._told = kind
        self._metrics.paused.set(kind is not None)
