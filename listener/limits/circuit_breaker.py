"""Stops sending while FCM refuses everything or does not answer, and probes now and then. Pure; times are passed in."""

from __future__ import annotations

from listener.fcm.outcome import Disposition, Outcome


class CircuitBreaker:
    """Closed: everything may be sent. Open: nothing may be sent, and from a certain time on one push, as a probe.

    It stays open for ``first`` seconds, and twice as long after each probe that fails, up to ``longest``. Times are
    monotonic seconds.
    """

    def __init__(self, first: float = 30.0, longest: float = 300.0) -> None:
        self._first = first
        self._longest = longest
        self.reason: str | None = None
        """Why the breaker is open; None: it is closed."""
        self.code: str | None = None
        """The code of the outcome that the reason is from."""
        self.opened_at = 0.0
        """When it last opened."""
        self._since = 0.0
        self._until = 0.0
        self._length = 0.0

    def note(self, outcome: Outcome, asked: float, now: float) -> bool:
        """Learns from the answer to a request made at ``asked``; returns whether the breaker opened or closed."""
        was_open = self.reason is not None
        if was_open and asked < self._since:
            return False  # made before the breaker opened or the last probe failed: it says nothing new
        if outcome.disposition is Disposition.PAUSE:
            self.reason, self.code = outcome.reason, outcome.code
        elif not was_open:
            return False
        elif outcome.http_status is not None:
            self.reason = self.code = None
            return True
        if not was_open:
            self.opened_at = now
        # Refused, or a probe without an answer.
        self._length = min(2 * self._length, self._longest) if was_open else self._first
        self._since, self._until = now, now + self._length
        return not was_open

    def doubt(self, now: float) -> None:
        """Allows a probe at once, because what opened the breaker may concern one push only.

        If that probe fails, the breaker stays open for ``first`` seconds.
        """
        self._until, self._length = now, self._first / 2

    def probe_at_once(self, now: float) -> None:
        """Allows a probe at once, because what opened the breaker seems to be over. If it fails, the wait doubles."""
        self._until = min(self._until, now)

    def close(self) -> None:
        """Closes the breaker for another reason than the answer to a probe."""
        self.reason = self.code = None

    def limit(self, now: float, in_flight: int) -> int | None:
        """The most pushes that may be in flight; None: the breaker sets no limit."""
        if self.reason is None:
            return None
        return 1 if now >= self._until and in_flight == 0 else 0

    def probes_in(self, now: float) -> float | None:
        """Seconds until the next probe is allowed; None: the breaker is closed."""
        return None if self.reason is None else max(0.0, self._until - now)
