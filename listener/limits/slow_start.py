"""How many pushes may be in flight after a start or a pause. Pure; times are monotonic seconds and are passed in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SlowStart:
    """A limit that doubles every ``step`` seconds from ``first``, beginning at ``since``."""

    first: int
    step: float
    since: float

    def limit(self, now: float, most: int) -> int:
        """How many may be in flight now, at most ``most``."""
        doublings = int(max(0.0, now - self.since) / self.step)
        return most if doublings > 30 else min(most, self.first << doublings)

    def grows_in(self, now: float) -> float:
        """Seconds until the limit is larger."""
        return self.step - max(0.0, now - self.since) % self.step


def after_losses(lost: int, most: int, now: float) -> SlowStart:
    """How to start when ``lost`` workers have died lately.

    One death is an accident. Each further one divides the limit by eight. So a push that kills its worker is soon alone
    in flight, and the pushes beside it are no longer blamed for the death.
    """
    return SlowStart(max(1, most >> 3 * min(max(0, lost - 1), 10)), 5.0, now)


def after_pause(now: float) -> SlowStart:
    """How to go on after a pause: a thousand pushes at once could end a recovery that has just begun."""
    return SlowStart(8, 1.0, now)
