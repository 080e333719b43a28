"""When FCM refuses our configuration: stop sending, and ask again now and then. Pure; times are passed in."""

from __future__ import annotations

from listener.fcm.outcome import Kind, Outcome

_FIRST = 30.0
_LONGEST = 300.0


class PauseGate:
    """Open, or closed until a time (monotonic seconds) at which one push may go through as a probe."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why sending is paused; None while it is not."""
        self._until = 0.0
        self._length = 0.0

    def note(self, outcome: Outcome, now: float) -> bool:
        """Learns from an answer; returns whether the gate was opened or closed by it."""
        if outcome.kind is Kind.PAUSE:
            closed = self.reason is None
            # The answers to what was under way when the gate closed say nothing new.
            if closed or now >= self._until:
                self._length = _FIRST if closed else min(2 * self._length, _LONGEST)
                self._until = now + self._length
            self.reason = outcome.reason
            return closed
        if (
            self.reason is not None
            and outcome.http_status is not None
            and outcome.kind is not Kind.REFRESH_AUTH
        ):
            self.reason = None
            return True
        return False

    def limit(self, now: float, in_flight: int) -> int | None:
        """Most pushes that may be claimed now; None: as many as you like."""
        if self.reason is None:
            return None
        return 1 if now >= self._until and in_flight == 0 else 0

    def opens_in(self, now: float) -> float | None:
        """Seconds until the next probe is allowed; None while sending is not paused."""
        return None if self.reason is None else max(0.0, self._until - now)
