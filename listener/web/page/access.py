"""Who may see the page, and who may act."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who makes a request."""

    name: str | None
    """The name that goes with the token of ACTION_TOKENS; "local" on an open loopback page; None: without a name."""
    may_read: bool
    may_act: bool
