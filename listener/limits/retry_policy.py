"""How long a push waits between two tries, and when it is given up. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from listener.config import Settings


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to wait, and when to give up. Times in seconds."""

    floor: float = 10.0
    """Least wait before a retry. Source: Firebase, "Scale with FCM": at least 10 s before any retry."""
    cap: float = 3600.0
    """Longest wait of our own choosing; a longer Retry-After is obeyed all the same."""
    max_tries: int = 5

    @classmethod
    def of(cls, settings: Settings) -> RetryPolicy:
        """The policy that the settings ask for."""
        return cls(settings.retry_min_delay, settings.retry_max_delay, settings.max_tries)

    def longest(self, tries: int) -> float:
        """The longest wait after ``tries`` failures: it doubles from twice the floor up to the cap."""
        return min(self.cap, self.floor * 2.0 ** min(tries, 30))
