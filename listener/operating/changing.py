"""Which pushes an action may change. Pure. In the end the functions of the database decide (docs/sql.md)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, get_args

Action = Literal["requeue", "cancel"]
ACTIONS: tuple[Action, ...] = get_args(Action)

STATUSES: Mapping[Action, tuple[str, ...]] = {
    "requeue": ("dead", "expired", "failed", "cancelled"),
    "cancel": ("pending", "failed"),
}
"""The statuses of the pushes that an action may change."""

WHY_NOT: Mapping[Action, str] = {
    "requeue": "only dead, expired, failed and cancelled pushes are requeued, and none past its expires_at",
    "cancel": "only pending and failed pushes are cancelled; one that is being sent is not",
}
"""Why an action leaves a push alone, in words for the person."""


def may_change(action: Action, status: str, expires_at: datetime | None, now: datetime) -> bool:
    """Whether the action may change a push with this status and this ``expires_at``."""
    is_over = action == "requeue" and expires_at is not None and expires_at <= now
    return status in STATUSES[action] and not is_over
