"""How far a push has got."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

ACCEPTED = frozenset({"sent", "delivered"})
"""FCM has accepted it."""
OVER = ACCEPTED | {"dead", "expired", "cancelled"}
"""push-listener does nothing more with the push."""


@dataclass(frozen=True, slots=True)
class DeviceProgress:
    """The latest news of a push on one device, without the device's token."""

    status: str
    platform: str | None
    at: datetime | None
    code: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a push has got."""

    push_id: UUID
    status: str
    retry_count: int = 0
    error_code: str | None = None
    last_error: str | None = None
    fcm_message_id: str | None = None
    """Only ``progress`` reads it."""
    created_at: datetime | None = None
    next_attempt_at: datetime | None = None
    sent_at: datetime | None = None
    delivered_at: datetime | None = None
    devices: tuple[DeviceProgress, ...] = ()
    """Only ``PushClient.get`` and ``wait`` read them."""

    @property
    def is_over(self) -> bool:
        """Whether push-listener does nothing more with the push."""
        return self.status in OVER

    @property
    def is_accepted(self) -> bool:
        """Whether FCM has accepted it."""
        return self.status in ACCEPTED


def read_progress(found: Mapping[str, Any]) -> Progress:
    """Builds the record from what ``get_push`` returns, or what ``progress`` has read."""
    return Progress(
        push_id=UUID(found["id"]),
        status=found["status"],
        retry_count=found["retry_count"] or 0,
        error_code=found["error_code"],
        last_error=found["last_error"],
        fcm_message_id=found.get("fcm_message_id"),
        created_at=read_time(found["created_at"]),
        next_attempt_at=read_time(found["next_attempt_at"]),
        sent_at=read_time(found["sent_at"]),
        delivered_at=read_time(found["delivered_at"]),
        devices=tuple(
            DeviceProgress(each["status"], each["platform"], read_time(each["at"]), each["code"])
            for each in found.get("devices") or ()
        ),
    )


def read_time(text: str | None) -> datetime | None:
    """Parses a time as Postgres writes it in JSON; ``infinity`` becomes None."""
    if text is None or text.endswith("infinity"):
        return None
    return datetime.fromisoformat(text)
