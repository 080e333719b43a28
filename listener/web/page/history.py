"""The last 15 minutes of what the charts show. Pure but for the list that it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Series:
    """The charts: each list is as long as ``at``; None is a gap."""

    at: Sequence[float] = ()
    """Unix seconds, ascending."""
    accepted: Sequence[float | None] = ()
    """Pushes a second that FCM accepted, of the whole fleet."""
    failed: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Pushes a second that ended dead or expired, of the whole fleet, by error code."""
    oldest_due: Sequence[float | None] = ()
    """Seconds for which the push that waited longest had been due."""
    p50: Sequence[float | None] = ()
    """Median seconds from due to the first request to FCM, of this process alone."""
    p99: Sequence[float | None] = ()


class History:
    """What was read in the last 15 minutes."""

    def series(self) -> Series:
        """The charts as they are now."""
        raise NotImplementedError
