"""Logs and exports whether sending is paused, for all platforms or for one."""

from __future__ import annotations

import functools

import structlog

from listener.limits.health import FcmHealth, Pause
from listener.metrics.labels import PLATFORMS, platform_of
from listener.metrics.own import Metrics
from listener.wakeup.look_signal import LookSignal

log = structlog.get_logger(__name__)


_REASONS = {
    "refused": Pause.REFUSED,
    "away": Pause.AWAY,
    "token_loss": Pause.TOKEN_LOSS,
    "no_access_token": Pause.NO_ACCESS_TOKEN,
}


class PauseReport:
    """Logs once when sending is paused, when the kind of pause changes, and when sending goes on; also per platform.

    The metrics show the state at the time when they are read.
    """

    def __init__(self, health: FcmHealth, look: LookSignal, metrics: Metrics) -> None:
        self._health = health
        self._look = look
        self._told: Pause | None = None
        self._told_platforms: set[str] = set()
        for label, kind in _REASONS.items():
            metrics.paused.labels(label).set_function(functools.partial(self._is_paused, kind))
        for platform in PLATFORMS:
            is_held = functools.partial(self._is_held, platform)
            metrics.platform_paused.labels(platform).set_function(is_held)

    def tell(self) -> None:
        """Called after each answer from FCM."""
        if self._health.is_open and self._told is None and not self._told_platforms:
            return
        self._tell_platforms()
        kind = self._health.pause_kind
        if kind == self._told:
            return
        if kind is None:
            log.info("sending resumed")
            self._look.note_capacity()
        else:
            log.error("sending paused", reason=self._health.reason)
        self._told = kind

    def _tell_platforms(self) -> None:
        held = self._health.held_platforms
        if held.keys() == self._told_platforms:
            return
        for platform in held.keys() - self._told_platforms:
            log.error("platform paused", platform=platform_of(platform), reason=held[platform])
        for platform in self._told_platforms - held.keys():
            log.info("platform resumed", platform=platform_of(platform))
        self._told_platforms = set(held)

    def _is_paused(self, kind: Pause) -> float:
        return float(self._health.pause_kind is kind)

    def _is_held(self, platform: str) -> float:
        return float(platform in map(platform_of, self._health.held_platforms))
