"""A claimed row, as the rest of the program sees it. Knows neither Postgres nor FCM."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID


class TargetKind(StrEnum):
    """The field of an FCM v1 message that names where it goes."""

    TOKEN = "token"  # noqa: S105  # the name of a field
    FID = "fid"
    TOPIC = "topic"
    CONDITION = "condition"


class Target(NamedTuple):
    """One place a push goes to: a device, a topic or a condition.

    ``platform`` is what ``push_recipients`` says of a device ('android', 'ios', 'web'), else None.
    """

    kind: TargetKind
    value: str
    platform: str | None = None

    @property
    def is_device(self) -> bool:
        """Whether it is one device, by its registration token or its installation id."""
        return self.kind is TargetKind.TOKEN or self.kind is TargetKind.FID


@dataclass(slots=True)
class Push:
    """One row of ``push_notifications`` that this worker holds.

    Text columns are as they stand in the row; ``data`` and ``options`` are JSON text, not yet looked at.
    """

    id: UUID
    attempt: int
    """``delivery_attempts`` after the claim: which claim of the row this is, and so its fence."""
    retry_count: int
    """Tries already used up before this one."""
    lost_claims: int
    """Earlier claims that ended without a result: the worker died, or its lease ran out."""
    device_token: str | None
    fid: str | None
    """The Firebase installation id of one device."""
    topic: str | None
    condition: str | None
    user_id: UUID | None
    recipients: list[tuple[str, str | None]]
    """(token or installation id, platform) of each live device of ``user_id`` that has not had this push yet; empty
    unless the row is addressed to a user."""
    accepted_before: int
    """Devices that FCM accepted this push for in earlier attempts."""
    title: str | None
    body: str | None
    data: str | None
    channel: str | None
    priority: str | None
    image: str | None
    options: str | None
    collapse_key: str | None
    expires_at: float | None
    """Unix time at which the push loses its meaning, by the database's clock; None: never."""
    expires_in: float | None
    """Seconds from the claim to ``expires_at``, by the database's clock; may be negative."""
    waited: float
    """Seconds from the moment the push was first due, before any try, to the claim, by the database's clock."""
    oversized: str | None
    """Names of columns that are far too large to be sent, and were therefore not read."""


class BadPush(ValueError):
    """The row can never be sent as it is: its message says what is wrong and what to do.

    The message never contains a registration token or any part of the payload.

    ``code`` is a short upper-case word for ``error_code`` and metric labels.
    """

    def __init__(self, reason: str, *, code: str = "INVALID_PUSH") -> None:
        super().__init__(reason)
        self.code = code


class Status(StrEnum):
    """``push_notifications.status``, as far as the listener writes it."""

    PENDING = "pending"
    SENT = "sent"
    FAILED = "failed"
    DEAD = "dead"
    EXPIRED = "expired"


EXPIRED_REASON = "expires_at had passed before it could be sent"


class Decision(NamedTuple):
    """What to write to the row."""

    status: Status
    delay: float | None = None
    """Seconds until the next look at the row; None: never again."""
    uses_try: bool = False
    code: str | None = None
    reason: str | None = None
    message_id: str | None = None


@dataclass(slots=True)
class LogLine:
    """One row of ``push_delivery_logs``: one attempt at one target."""

    token: str | None
    status: str
    details: dict[str, object]
    """Has ``attempt``, is small, and has no character NUL, which Postgres cannot store."""


@dataclass(slots=True)
class Settlement:
    """Everything that one attempt at one row leaves behind."""

    push_id: UUID
    attempt: int
    decision: Decision
    logs: list[LogLine] = field(default_factory=list)
    dead_tokens: list[tuple[str, str]] = field(default_factory=list)
    """(token, code) of registration tokens that FCM reported dead."""
    requests: int = 0
    """Requests that were begun."""
