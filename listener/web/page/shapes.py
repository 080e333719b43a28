"""Turns records into what the templates show: words, tones, addresses, and series. Pure."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING
from urllib.parse import urlencode
from uuid import UUID

from listener.operating.durations import duration
from listener.operating.filters import Filter, FilterFault
from listener.operating.records import Attempt, CodeGroup, Pulse, PushLine, Receipt, Revealed, Story

if TYPE_CHECKING:
    from listener.metrics.shared import Figures
    from listener.web.page.app import Snapshot
    from listener.web.page.history import Series

TONES: Mapping[str, str] = {
    "pending": "wait",
    "processing": "busy",
    "failed": "warn",
    "sent": "good",
    "delivered": "good",
    "opened": "good",
    "clicked": "good",
    "dead": "bad",
    "expired": "bad",
    "unknown": "warn",
    "cancelled": "quiet",
}
"""The colour of each status. The templates always show the word of the status beside it."""

QUOTA_CLOSE = 0.8
"""The fraction of the quota from which the alert QuotaClose fires (docs/alerts.md)."""

UNKNOWN = "\u2013"
"""A dash in place of a figure that is not known."""

_WAITING = frozenset({"pending", "failed"})

_HIDDEN = {
    **{code: 0x2400 + code for code in range(0x20)},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    **dict.fromkeys([0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}


MOST_SHOWN = 16_000
"""The most characters of one value that a page shows. There is a limit because the event loop that renders the page
also sends pushes."""

MOST_IDS = 20
"""The most ids that one row of the actions shows, and the most tokens of one push."""


def visible(text: str, most: int = MOST_SHOWN) -> str:
    """``text`` with a visible sign in place of each control character and each mark that changes the direction of text.

    A text longer than ``most`` characters is cut, and its end says so.
    """
    shown = text[:most].translate(_HIDDEN)
    return shown if len(text) <= most else f"{shown}\u2026 (cut here: {len(text):,} characters)"


def tone(status: str) -> str:
    """The tone of a status; "quiet" for an unknown status."""
    return TONES.get(status, "quiet")


def number(value: float) -> str:
    """A number of pushes, or a rate: 1,234 or 0.25."""
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def percent(part: float) -> str:
    """A fraction from 0 to 1 in percent. A fraction above 0 is never shown as 0 %."""
    return "0 %" if part <= 0 else "< 1 %" if part < 0.01 else f"{math.floor(part * 100)} %"


def utc(time: datetime) -> str:
    """The text of ``<time>`` without JavaScript, and the title of each ``<time>``: 2026-01-31 12:00:05 UTC."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def short(identifier: UUID) -> str:
    """The last part of an id, for a list. The first part of a UUIDv7 is a time, and is the same for about a minute."""
    return f"\u2026{str(identifier)[-8:]}"


def address(prefix: str, path: str, *values: Mapping[str, str | None], **more: str | int | None) -> str:
    """A URL of the page. Values that are None or empty are left out; a later value replaces an earlier one."""
    merged: dict[str, str | int | None] = {}
    for part in (*values, more):
        merged.update(part)
    query = urlencode({name: value for name, value in merged.items() if value not in (None, "")}, safe=":,")
    return f"{prefix}{path}?{query}" if query else f"{prefix}{path}"


def for_input(time: datetime | None) -> str:
    """A time in the form of ``<input type=datetime-local>``, in UTC."""
    return time.astimezone(UTC).isoformat(timespec="seconds")[:19] if time else ""


def moment_of(name: str, value: str) -> datetime | None:
    """The time in a field of a filter; None: the value is not a time."""
    if name not in ("since", "until"):
        return None
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def described(applied: Filter) -> str:
    """A filter in words, without its times, for a heading: "dead pushes, code UNREGISTERED, of user …3c4d5e6f"."""
    words = [f"{applied.status} pushes" if applied.status else "all pushes"]
    if applied.kind:
        words.append(f"addressed to a {applied.kind}")
    if applied.code:
        words.append(f"code {applied.code}")
    if applied.user:
        words.append(f"of user {short(applied.user)}")
    return ", ".join(words)


def group_address(prefix: str, group: CodeGroup) -> str | None:
    """The address of the list of a group's pushes; None if no filter takes the code, such as '' or one with blanks."""
    values = {"status": group.status, "code": group.code}
    try:
        is_found = Filter.parse(values).as_values() == values
    except FilterFault:
        return None
    return address(prefix, "/pushes", values) if is_found else None


@dataclass(frozen=True, slots=True)
class Chip:
    """One condition of a filter, and the address of the list without it."""

    name: str
    value: str
    without: str


def chips(prefix: str, applied: Filter) -> list[Chip]:
    """The conditions of a filter, so that a person can remove each one. The status is not among them: it has tabs."""
    values = applied.as_values()
    return [
        Chip(
            name,
            value,
            address(prefix, "/pushes", {k: v for k, v in values.items() if k != name}),
        )
        for name, value in values.items()
        if name != "status"
    ]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the first screen."""

    label: str
    value: str
    note: str = ""
    path: str | None = None
    """The path of the page that shows more."""
    tone: str = "plain"
    parts: Sequence[tuple[str, str]] = ()
    """Names and paths of the lists that the figure counts together."""


def figures(snapshot: Snapshot) -> list[Figure]:
    """The figures about waiting pushes, the quota and the workers. A dash stands for a figure that is not known now."""
    state, pulse, read = snapshot.state, snapshot.pulse, snapshot.state.figures
    waiting: Counter[str] = Counter()
    for (status, _), pushes in (read.depth if read else {}).items():
        waiting[status] += pushes

    def known(value: int) -> str:
        return number(value) if read else UNKNOWN

    due = sum(read.due.values()) if read else 0
    oldest = pulse.oldest_due if pulse else max(read.oldest_due.values(), default=0.0) if read else None
    unwritable = sum(read.unwritable.values()) if read else 0
    return [
        Figure(
            "Due now",
            known(due),
            _oldest(oldest),
            tone="warn" if (oldest or 0) > 5 else "plain",
            parts=(("new", "/pushes?status=pending"), ("retries", "/pushes?status=failed")),
        ),
        Figure("In flight", known(waiting["processing"]), f"{number(state.in_flight)} by this process"),
        Figure("Wait for a retry", known(waiting["failed"]), "", "/pushes?status=failed"),
        Figure(
            "Scheduled",
            known(read.scheduled if read else 0),
            f"{number(unwritable)} cannot be written" if unwritable else "new ones and retries",
            tone="bad" if unwritable else "plain",
        ),
        Figure(
            "Quota used",
            percent(state.quota_used),
            "of this process",
            tone="warn" if state.quota_used >= QUOTA_CLOSE else "plain",
        ),
        _workers(pulse, read),
    ]


def _workers(pulse: Pulse | None, read: Figures | None) -> Figure:
    """How many workers Postgres sees. With WAKEUP=sweep it sees none, and ``figures.workers`` is None."""
    if pulse is None:
        return Figure("Workers", UNKNOWN, "", "/workers")
    if pulse.workers:
        return Figure("Workers", number(pulse.workers), "", "/workers")
    if read is None or read.workers is None:
        return Figure("Workers", UNKNOWN, "Postgres sees none" if read else "", "/workers")
    return Figure("Workers", "0", "none is at work", "/workers", "bad")


def _oldest(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"the oldest for {duration(seconds)}" if seconds > 0 else "nothing waits"


@dataclass(frozen=True, slots=True)
class Minute:
    """A row of the table that shows the data of the charts."""

    at: datetime
    accepted: str
    failed: str
    oldest_due: str
    p50: str
    p99: str


def minutes(series: Series) -> list[Minute]:
    """The data of each minute, the newest first. A dash: nothing was read.

    A rate is the mean over the part of the minute for which it is known. For values in seconds, the maximum is shown.
    The rate of a point is for the time since the previous point, so it may belong to several minutes.
    """
    at, rows = series.at, sorted({int(time // 60) for time in _minutes_between(series.at)}, reverse=True)
    failed = [
        None if rate is None else sum(rates[index] or 0.0 for rates in series.failed.values())
        for index, rate in enumerate(series.accepted)
    ]

    def overlaps(minute: int) -> list[tuple[int, float]]:
        """The points whose time since the previous point overlaps the minute, each with the seconds of overlap."""
        found = [
            (index, min(at[index], minute * 60 + 60) - max(at[index - 1], minute * 60))
            for index in range(1, len(at))
        ]
        return [(index, seconds) for index, seconds in found if seconds > 0]

    def mean(rates: Sequence[float | None], minute: int) -> str:
        known = [(rate, seconds) for index, seconds in overlaps(minute) if (rate := rates[index]) is not None]
        if not known:
            return UNKNOWN
        return number(round(sum(rate * seconds for rate, seconds in known) / sum(s for _, s in known), 2))

    def most(values: Sequence[float | None], found: Iterable[int]) -> str:
        known = [value for index in found if (value := values[index]) is not None]
        return duration(max(known)) if known else UNKNOWN

    return [
        Minute(
            datetime.fromtimestamp(minute * 60, UTC),
            mean(series.accepted, minute),
            mean(failed, minute),
            most(series.oldest_due, (index for index, time in enumerate(at) if time // 60 == minute)),
            most(series.p50, (index for index, _ in overlaps(minute))),
            most(series.p99, (index for index, _ in overlaps(minute))),
        )
        for minute in rows
    ]


def _minutes_between(at: Sequence[float]) -> Iterator[float]:
    """A time in each minute from the first point to the last."""
    if at:
        yield from range(int(at[0] // 60) * 60, int(at[-1]) + 1, 60)


MOST_CODES = 5
"""The most lines with a code in the chart of failures. The other codes share one line, "other"."""


def chart_data(series: Series, last: int | None = None) -> dict[str, object]:
    """The data that app.js draws; with ``last``, only that many newest points. Values have four significant digits."""
    start = 0 if last is None else max(len(series.at) - last, 0)

    def cut(values: Sequence[float | None]) -> list[float | None]:
        return [None if value is None else float(f"{value:.4g}") for value in islice(values, start, None)]

    ranked = sorted(series.failed, key=lambda code: (-sum(value or 0 for value in series.failed[code]), code))
    failed = {code: cut(series.failed[code]) for code in ranked[:MOST_CODES]}
    if rest := ranked[MOST_CODES:]:
        failed["other"] = [
            _sum(values) for values in zip(*(cut(series.failed[code]) for code in rest), strict=True)
        ]
    return {
        "at": [round(at, 3) for at in series.at[start:]],
        "accepted": cut(series.accepted),
        "failed": failed,
        "oldest_due": cut(series.oldest_due),
        "p50": cut(series.p50),
        "p99": cut(series.p99),
    }


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened to a push."""

    at: datetime
    since_insert: str
    """The time since the insert, such as "+0.2 s"; '' for the insert itself."""
    what: str
    tone: str
    device: str = ""
    platform: str = ""
    code: str = ""
    answer: str = ""
    message_id: str = ""
    attempt: int | None = None


_OUTCOMES = {"sent": "accepted by FCM", "failed": "refused", "unknown": "no clear answer"}
_RECEIPTS = {"delivered": "shown on the device", "opened": "opened", "clicked": "clicked"}


def moments(story: Story) -> list[Moment]:
    """Everything that happened to a push, in order of time."""
    born = story.line.created_at

    def since(at: datetime) -> str:
        return f"+{duration((at - born).total_seconds())}"

    def of_attempt(attempt: Attempt) -> Moment:
        return Moment(
            attempt.at,
            since(attempt.at),
            _OUTCOMES.get(attempt.status, attempt.status),
            tone(attempt.status),
            attempt.device,
            attempt.platform or "",
            attempt.code or "",
            attempt.answer or "",
            attempt.message_id or "",
            attempt.attempt,
        )

    def of_receipt(receipt: Receipt) -> Moment:
        words = _RECEIPTS.get(receipt.status, receipt.status)
        return Moment(receipt.at, since(receipt.at), words, "good", receipt.device)

    found = [*map(of_attempt, story.attempts), *map(of_receipt, story.receipts)]
    if story.line.status in ("cancelled", "expired"):
        ended = story.line.updated_at
        found.append(Moment(ended, since(ended), story.line.status, tone(story.line.status)))
    return [Moment(born, "", "inserted", "quiet"), *sorted(found, key=lambda moment: moment.at)]


def ending(story: Story, now: datetime) -> str:
    """What became of the push, in a sentence or two."""
    line = story.line
    accepted = {attempt.device for attempt in story.attempts if attempt.status == "sent"}
    tried = {attempt.device for attempt in story.attempts}
    if story.is_cut:  # the log may have devices that the story does not show
        devices = f" for at least {len(accepted)} devices" if len(accepted) > 1 else ""
    else:
        devices = f" for {len(accepted)} of {len(tried)} devices" if len(tried) > 1 else ""
    match line.status:
        case "sent" | "delivered":
            took = (
                f" {duration((story.sent_at - line.created_at).total_seconds())} after the insert"
                if story.sent_at
                else ""
            )
            end = (
                " A device has shown it."
                if story.delivered_at
                else " No device has reported yet that it showed it."
            )
            return f"FCM accepted it{devices}{took}.{end}"
        case "failed":
            return f"It failed {_attempts(story.delivery_attempts)} and is tried again."
        case "pending":
            return _waits(line.due_at, now)
        case "processing":
            return "A worker has claimed it and sends it now."
        case "dead":
            return f"It is given up {_attempts(story.delivery_attempts)}{devices and ', accepted' + devices}."
        case "expired":
            return "Its expires_at passed before FCM accepted it."
        case "cancelled":
            return "It was cancelled and is not sent."
    return f"Its status is {line.status}."


_SOON_S = 5.0
"""The objective: a push is accepted within this time of being due (docs/alerts.md, Objectives)."""


def _waits(due_at: datetime | None, now: datetime) -> str:
    if due_at is None:
        return "It waits to be sent."
    if due_at > now:
        return "It waits for its time."
    late = (now - due_at).total_seconds()
    return (
        f"It waits to be sent, {duration(late)} after it was due."
        if late > _SOON_S
        else "It waits to be sent."
    )


def _attempts(number: int) -> str:
    if number == 0:
        return "before any attempt"
    return "at its first attempt" if number == 1 else f"after {number} attempts"


def copies(story: Story) -> str | None:
    """Why a person may have seen the push more than once; None: no row of the story shows that."""
    least = "at least " if story.is_cut else ""
    unclear = sum(attempt.status == "unknown" for attempt in story.attempts)
    accepted = Counter(attempt.device for attempt in story.attempts if attempt.status == "sent")
    again = sum(times > 1 for times in accepted.values())
    signs = []
    if again:
        signs.append(
            f"FCM accepted it more than once for {least}{again} {'device' if again == 1 else 'devices'}"
        )
    if unclear:
        signs.append(
            f"{least}{unclear} {'attempt' if unclear == 1 else 'attempts'} had no clear answer and may have arrived"
        )
    if story.lost_claims:
        signs.append(
            f"{story.lost_claims} {'claim' if story.lost_claims == 1 else 'claims'} ended without a result, "
            "and FCM may have accepted it then"
        )
    return "; ".join(signs) or None


def waits_until(line: PushLine) -> datetime | None:
    """When a waiting push is due; None if the push does not wait."""
    return line.due_at if line.status in _WAITING else None


def order(applied: Filter) -> str:
    """The order of a list, in words."""
    if applied.user:
        return "those inserted last first"
    return "those due next first" if applied.status in _WAITING else "those changed last first"


def payload(revealed: Revealed) -> list[tuple[str, str | None]]:
    """What a push says and where it goes, as names and values in the order of the page, cut to what a page may show."""

    def text(value: object) -> str | None:
        return value if value is None or isinstance(value, str) else _json(value)

    found = [
        ("Title", revealed.title),
        ("Text", revealed.body),
        ("Data", text(revealed.data)),
        ("Image", revealed.image),
        ("Options", text(revealed.options)),
        ("Token", revealed.token),
    ]
    logged = [token for token in revealed.tokens if token != revealed.token]
    found += [("Token in the log", token) for token in logged[:MOST_IDS]]
    if len(logged) > MOST_IDS:
        found.append(("Tokens in the log", f"{len(logged):,}, of which {MOST_IDS} are shown"))
    return found


def _json(value: object) -> str:
    """``value`` as JSON. A long text ends soon after the length that ``visible`` shows."""
    # The encoder works lazily, so a large value is encoded only as far as its text is needed.
    parts: list[str] = []
    length = 0
    for part in json.JSONEncoder(ensure_ascii=False, indent=2).iterencode(value):
        parts.append(part)
        length += len(part)
        if length > MOST_SHOWN:
            break
    return "".join(parts)
