"""What is known of pushes, workers and actions: records without behaviour."""

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
    """token, fid, user, topic, condition; '' for a push without a target."""
    target: str
    """Hash of the token or fid ("token 1a2b3c4d"), user id, topic, or condition."""
    title: str | None
    error_code: str | None
    last_error: str | None
    """The reason, with what may be a token hidden."""
    retry_count: int
    created_at: datetime
    updated_at: datetime
    due_at: datetime | None
    """next_attempt_at of a waiting push."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list."""

    lines: Sequence[PushLine]
    after: str | None
    """For the next part; None: there is none."""
    is_partial: bool = False
    """The search stopped after a bounded number of rows; ``after`` goes on."""
    first: str = ""
    """Of the first row, for ``Reading.newer``."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many pushes a filter applies to."""

    number: int
    is_exact: bool
    """False: at least so many."""

    def __str__(self) -> str:
        return f"{self.number:,}" if self.is_exact else f"{self.number:,}+"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of push_delivery_logs that the listener wrote."""

    at: datetime
    attempt: int | None
    device: str
    """Hash of the token; '' where there is none."""
    platform: str | None
    status: str
    """sent, failed, unknown."""
    code: str | None
    answer: str | None
    """FCM's words, with tokens hidden."""
    message_id: str | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """A row of push_delivery_logs that a device reported."""

    at: datetime
    device: str
    status: str


@dataclass(frozen=True, slots=True)
class Story:
    """All that is known of one push, without its text: that is revealed by an action of its own."""

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
    """What could not be written, and the code; None: all could."""
    attempts: Sequence[Attempt]
    receipts: Sequence[Receipt]
    is_cut: bool
    """There are more log rows than are shown."""


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
    """Pushes that it has claimed and not settled."""
    is_guarded: bool = True
    """False: it holds no liveness lock (WAKEUP=sweep, or it has just started), so whether it lives is unknown."""


@dataclass(frozen=True, slots=True)
class ActionLine:
    """One row of push_listener.actions."""

    id: int
    at: datetime
    who: str
    what: str
    """requeue, cancel, reveal or send."""
    filter: Mapping[str, str] | None
    reason: str | None
    affected: int
    """How many pushes."""
    ids: Sequence[UUID]
    """Of these pushes, no more than 20."""
    run: UUID | None
    """The same for all batches of one action."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What an action would do now."""

    pushes: Count
    examples: Sequence[PushLine]
    maybe_seen: Count
    """Of them: those that a person may see twice, because FCM may have accepted them."""
    until: datetime
    """The time of the preview, by the database's clock: what a later transaction changes is left alone.

    A push has the time at which the transaction began that changed it. So what a transaction changes that has begun
    before the preview and ends after it is not left alone.
    """


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an action on all that match is."""

    done: int
    """Pushes changed."""
    skipped: int
    """Pushes that matched and were changed by somebody else since the preview."""
    is_over: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """The pushes that ended in the last seconds."""

    lines: Sequence[PushLine]
    now: datetime
    """The database's time; what commits later may still be written with an earlier time."""
    complete_since: datetime | None
    """Of what ended before, some is missing, because there was too much; None: none is."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the first screen shows of the database, the same for every process. Cheap to read once a second."""

    at: datetime
    """By the database's clock."""
    sent: int
    """Pushes accepted by FCM today and yesterday (UTC): for differences."""
    failed: Mapping[str, int]
    """Pushes that ended dead or expired today and yesterday, by code: for differences."""
    oldest_due: float
    """Seconds for which the push that has waited longest has been due, counted from before its first try, also while it
    waits for the next one: as push_queue_oldest_due_seconds. 0: there is none."""
    workers: int | None
    """None: Postgres does not see them, with WAKEUP=sweep."""
    is_due: bool = False
    """Whether a push could be claimed now."""
    retrying: int = 0
    """Pushes that were due and wait for their next try."""
    is_whole: bool = True
    """Whether ``oldest_due`` and ``retrying`` are of all pushes that wait; else of those that are due first."""
    latest: Sequence[PushLine] = field(default_factory=tuple)
    """The pushes that changed last, the newest first."""


@dataclass(frozen=True, slots=True)
class Revealed:
    """What a push says and where it goes. Its repr shows nothing, so that no log and no error message can.

    Of a text the first 16,384 characters, and then a sign that it is cut.
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
    """The registration tokens that its log names, no more than 1,000."""
