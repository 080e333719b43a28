"""Pushes, workers and actions as a person sees them: records without behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class PushLine:
    """One push in a list. No registration token or fid: ``target`` shows a short hash of it."""

    id: UUID
    status: str
    priority: str
    kind: str
    """``token``, ``fid``, ``user``, ``topic`` or ``condition``; '' for a push without a target."""
    target: str
    """The hash of the token or fid ("token 1a2b3c4d"), the user id, the topic, or the condition."""
    title: str | None
    error_code: str | None
    last_error: str | None
    """The reason. Everything that may be a token is hidden in it."""
    retry_count: int
    created_at: datetime
    updated_at: datetime
    due_at: datetime | None
    """The next_attempt_at of a waiting push."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list."""

    lines: Sequence[PushLine]
    after: str | None
    """The cursor of the next part; None: this is the last part."""
    is_partial: bool = False
    """Whether the search stopped because it had looked at as many rows as it may; ``after`` continues it."""
    first: str = ""
    """Identifies the place of the first row, for ``Reading.newer``."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many pushes match a filter."""

    number: int
    is_exact: bool
    """False: there may be more."""

    def __str__(self) -> str:
        return f"{self.number:,}" if self.is_exact else f"{self.number:,}+"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of push_delivery_logs that the listener wrote."""

    at: datetime
    attempt: int | None
    device: str
    """The hash of the token; '' if there is no token."""
    platform: str | None
    status: str
    """``sent``, ``failed`` or ``unknown``."""
    code: str | None
    answer: str | None
    """FCM's text. Tokens are hidden in it."""
    message_id: str | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """A row of push_delivery_logs that a device reported."""

    at: datetime
    device: str
    status: str


@dataclass(frozen=True, slots=True)
class Story:
    """Everything about one push except its text, which only the action ``reveal`` shows."""

    line: PushLine
    user: UUID | None
    collapse_key: str | None
    idempotency_key: str | None
    expires_at: datetime | None
    sent_at: datetime | None
    delivered_at: datetime | None
    last_retry_at: datetime | None
    fcm_message_id: str | None
    claimed_by: int | None
    delivery_attempts: int
    lost_claims: int
    unwritable: str | None
    """What could not be written for this push, ``claim`` or ``settle``, and the error code; None: everything could."""
    attempts: Sequence[Attempt]
    receipts: Sequence[Receipt]
    is_cut: bool
    """Whether there are more log rows than are shown."""


@dataclass(frozen=True, slots=True)
class CodeGroup:
    """Dead or expired pushes with one error code."""

    status: str
    code: str
    pushes: Count
    latest: datetime


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """One worker."""

    id: int
    name: str
    started_at: datetime
    stopped_at: datetime | None
    is_alive: bool
    is_lost: bool
    in_flight: Count
    """How many pushes it has claimed and not settled."""
    is_guarded: bool = True
    """False: it holds no liveness lock (WAKEUP=sweep, or it has just started), so whether it lives is unknown."""


@dataclass(frozen=True, slots=True)
class ActionLine:
    """One row of push_listener.actions."""

    id: int
    at: datetime
    who: str
    what: str
    """``requeue``, ``cancel``, ``reveal`` or ``send``."""
    filter: Mapping[str, str] | None
    reason: str | None
    affected: int
    """How many pushes the action has changed, revealed or made."""
    ids: Sequence[UUID]
    """The ids of no more than 20 of these pushes."""
    run: UUID | None
    """An id, the same for all batches of one action."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What an action would do now."""

    pushes: Count
    examples: Sequence[PushLine]
    maybe_seen: Count
    """How many of them a person may see twice, because FCM may have accepted them."""
    until: datetime
    """The time of the preview, by the database's clock. The action leaves alone what later transactions change.

    The updated_at of a push is the time at which the transaction that changed it began. So the action does not leave
    alone a push that was changed by a transaction which began before the preview and ended after it.
    """


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an action on all that match is."""

    done: int
    """How many pushes it has changed."""
    skipped: int
    """How many pushes matched, but somebody else has changed or locked them since the preview."""
    is_over: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """The pushes that ended in the last seconds."""

    lines: Sequence[PushLine]
    now: datetime
    """The database's time. A transaction that commits later may still have written an earlier time."""
    complete_since: datetime | None
    """Some pushes that ended before this time are missing, because there were too many; None: none is missing."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """The figures from the database for the first screen, the same for every process. Cheap to read once a second."""

    at: datetime
    """The time by the database's clock."""
    sent: int
    """Pushes that FCM accepted today and yesterday (UTC). Readers use the difference of two values."""
    failed: Mapping[str, int]
    """Pushes that ended dead or expired today and yesterday, by code. Readers use the difference of two values."""
    oldest_due: float
    """For how many seconds the push that has waited longest has been due; 0: no push is due. The time counts from when
    the push was first due, also while it waits for its next try, as in push_queue_oldest_due_seconds."""
    workers: int | None
    """How many workers live; None: Postgres does not see them, with WAKEUP=sweep."""
    is_due: bool = False
    """Whether a push could be claimed now."""
    retrying: int = 0
    """Pushes that were due and wait for their next try."""
    is_whole: bool = True
    """Whether ``oldest_due`` and ``retrying`` cover all waiting pushes; otherwise only those that are due first."""
    latest: Sequence[PushLine] = field(default_factory=tuple)
    """The pushes that changed last, the newest first."""


@dataclass(frozen=True, slots=True)
class Revealed:
    """What a push says and where it goes. Its repr shows nothing, so that no log and no error message can show it.

    A text longer than 16,384 characters is cut there, and its end says so.
    """

    token: str | None = field(repr=False)
    title: str | None = field(repr=False)
    body: str | None = field(repr=False)
    data: object = field(repr=False)
    """As JSON is loaded, or a text if it was cut; None: the push has none."""
    image: str | None = field(repr=False)
    options: object = field(repr=False)
    """As JSON is loaded, or a text if it was cut; None: the push has none."""
    tokens: Sequence[str] = field(repr=False)
    """The registration tokens in its log, no more than 1,000."""
