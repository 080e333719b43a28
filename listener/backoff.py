"""How long to wait after failures in a row."""

from __future__ import annotations

from typing import Any, cast

import tenacity


class Backoff:
    """Tenacity's exponential backoff with full jitter, for loops that its decorator does not fit.

    Args:
        first: seconds, at most, after the first failure.
        longest: seconds, at most, after any failure.
        least: seconds, at least, after any failure.
    """

    def __init__(self, first: float, longest: float, least: float = 0.0) -> None:
        self._wait = tenacity.wait_random_exponential(multiplier=first, max=longest, min=least)
        self._state = tenacity.RetryCallState(cast(Any, None), None, (), {})
        self.failures = 0
        """Failures in a row."""

    def failed(self) -> float:
        """Notes a failure; returns the seconds to wait."""
        self.failures += 1
        self._state.attempt_number = self.failures
        return self._wait(self._state)

    def succeeded(self) -> None:
        """Notes a success: the next failure is the first again."""
        self.failures = 0
