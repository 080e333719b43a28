"""Whether pushes go out, in one sentence, by the rules of /readyz and of the alerts (docs/alerts.md). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "attention", "trouble"]
"""ok: pushes go out in time. attention: a ticket. trouble: a page, pushes do not go out or nobody can tell."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the first screen says."""

    level: Level
    sentence: str
    remedy: str
    """What to do; '' if nothing."""
