"""Logs and exports whether sending is paused, to all or to one platform."""

from __future__ import annotations

import structlog

from listener.limits.health import FcmHealth, Pause
from listener.metrics import Metrics
from listener.wakeup.look_signal import LookSignal

log = structlog.get_logger(__name__)


_PLATFORMS = ("android", "ios", "web", "other")


class PauseReport:
    """Tells, once, when sending is paused, is paused for another kind of reason, or goes on; so for each platform."""

    def __init__(self, health: FcmHealth, look: LookSignal, metrics: Metrics) -> None:
        self._health = health
        self._look = look
        self._metrics = metrics
        self._told: Pause | None = None
        self._told_platforms: set[str] = set()
        for platform in _PLATFORMS:
            metrics.platform_paused.labels(platform).set(0)

    def tell(self) -> None:
        """Called after each answer from FCM."""
        self._tell_platforms()
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

    def _tell_platforms(self) -> None:
        held = self._health.held_platforms
        if held.keys() == self._told_platforms:
            return
        for platform in held.keys() - self._told_platforms:
            log.error("platform paused", platform=_label(platform), reason=held[platform])
        for platform in self._told_platforms - held.keys():
            log.info("platform resumed", platform=_label(platform))
        self._told_platforms = set(held)
        paused = set(map(_label, held))
        for label in _PLATFORMS:
            self._metrics.platform_paused.labels(label).set(label in paused)


def _label(platform: str) -> str:
    """A bounded name: a view of the application's own may call a platform anything."""
    return platform if platform in _PLATFORMS else "other"
