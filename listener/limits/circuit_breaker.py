"""When FCM refuses our configuration: stop sending, and ask again now and then. Pure; times are passed in."""

from __future__ import annotations

from listener.fcm.outcome import Disposition, Outcome


class CircuitBreaker:
    """Open, or closed until a time (monotonic seconds) at which one push may go through as a probe.

    It is closed for ``first`` seconds, and twice as long after each probe that fails, up to ``longest``.
    """

    def __init__(self, first: float = 30.0, longest: float = 300.0) -> None:
        self._first = first
        self._longest = longest
        self.reason: str | None = None
        """Why sending is paused; None while it is not."""
        self.code: str | None = None
        """The code of the outcome that says so."""
        self._since = 0.0
        self._until = 0.0
        self._length = 0.0

    def note(self, outcome: Outcome, asked: float, now: float) -> bool:
        """Learns from the answer to a request made at ``asked``; returns whether it opened or closed the gate."""
        paused = self.reason is not None
        if paused and asked < self._since:
            return False  # was under way when the gate closed, or beside the last probe: says nothing new
        if outcome.disposition is Disposition.PAUSE:
            self.reason, self.code = outcome.reason, outcome.code
        elif not paused:
            return False
        elif outcome.http_status is not None:
            self.reason = self.code = None
            return True
        # Refused, or a probe without an answer.
        self._length = min(2 * self._length, self._longest) if paused else self._first
        self._since, self._until = now, now + self._length
        return not paused

    def open(self) -> None:
        """Ends the pause for another reason than the answer to a probe."""
        self.reason = self.code = None

    def limit(self, now: float, in_flight: int) -> int | None:
        """Most pushes that may be claimed now; None: as many as you like."""
        if self.reason is None:
            return None
        return 1 if now >= self._until and in_flight == 0 else 0

    def opens_in(self, now: float) -> float | None:
        """Seconds until the next probe is allowed; None while sending is not paused."""
        return None if self.reason is None else max(0.0, self._until - now)
