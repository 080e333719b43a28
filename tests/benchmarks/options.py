"""How a run of the benchmark is to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Options:
    runs: int = 3
    quick: bool = False
    latency_ms: float = 50.0
    """Of FCM's answers, where that matters."""
    tls: bool | None = None
    """None: both, where it matters most, else without."""
    peers: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further environment of push-listener."""

    @property
    def secure(self) -> bool:
        """Whether pushes go over TLS where only one way is tried."""
        return self.tls is True
