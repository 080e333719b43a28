"""Reads, for a person, what the database knows about pushes, workers and actions.

Every statement runs in a read-only transaction that sees one snapshot. Postgres cancels a statement that takes longer
than two seconds. The settings are local to the transaction, so this works behind a transaction pooler.

No statement reads a whole table. A search looks at a bounded number of entries of an index (see ``order``), and returns
what it found and where the next search begins.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, LiteralString
from uuid import UUID

import orjson
from psycopg import AsyncCursor
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row

from listener.fcm.redaction import without_tokens
from listener.operating import order
from listener.operating.changing import Action
from listener.operating.filters import Filter
from listener.operating.order import Entry, Part, Plan, Position, Source
from listener.operating.records import (
    ActionLine,
    Attempt,
    CodeGroup,
    Count,
    Ended,
    Page,
    Preview,
    Pulse,
    PushLine,
    Receipt,
    Story,
    WorkerLine,
)
from listener.postgres.connect import Connection
from listener.postgres.statements import load

WINDOW = 5_000
"""The most entries of an index that one search looks at."""

_NEAR = 1_000
"""In a list of everything, for each priority: this many waiting pushes that are due next, and as many that became due
last."""
_PULSE_WINDOW = 1_000
"""The number of waiting pushes of each priority that the pulse looks at."""
_MOST_CODES = 100
_CODE_WINDOW = 2_000
_COUNTED = 1_000
_MOST_WORKERS = 200
_ENDED_WORKERS = 20
_LOG_ROWS = 200
_PREVIEW_S = 0.15
_EXAMPLES = 5

CUT = " ... (cut)"
"""The end of a text that was cut."""
_SHORT = 200
_LONG = 2000
_CODE = 64
_MESSAGE_ID = 512

# These settings make Postgres take the order from an index. Its statistics may be from a time when the table was empty,
# and then it would otherwise read and sort a million rows.
_BEGIN: LiteralString = """
begin isolation level repeatable read read only;
set local statement_timeout = '2s';
set local enable_seqscan = off;
set local enable_bitmapscan = off;
set local enable_sort = off;
set local jit = off
"""

_COLUMNS = load(__file__, "columns")
_LINE = load(__file__, "line")
_MATCHES = load(__file__, "matches")


_NEAREST = load(__file__, "nearest", columns=_COLUMNS)


def _entries(statement: str) -> LiteralString:
    return load(__file__, statement, columns=_COLUMNS, nearest=_NEAREST)


def _scan(statement: str, direction: str, ties: str) -> LiteralString:
    cut = "pg_catalog.max(p.looked) over in_order = %(window)s::bigint"
    return load(
        __file__,
        "scan",
        line=_LINE,
        matches=_MATCHES,
        entries=_entries(statement),
        direction=direction,
        blocks=", p.block" if ties == "blocks" else "",
        is_cut="false" if ties == "ids" else cut,
    )


# For each source: the direction in which its keys are read, and by what its entries with the same key are ordered.
_SOURCES = {
    "by_user": ("desc", "ids"),
    "by_code": ("desc", "blocks"),
    "given_up": ("desc", "none"),
    "over": ("desc", "none"),
    "near": ("desc", "ids"),
    "waiting": ("", "blocks"),
}

SCANS = {statement: _scan(statement, *how) for statement, how in _SOURCES.items()}
SAME = {statement: _scan(f"{statement}_same", "", "blocks") for statement in ("given_up", "over")}
"""For the sources that are read backwards: the scans of the entries with the same key as a position."""
COUNTS = {
    statement: load(__file__, "count", matches=_MATCHES, entries=_entries(statement))
    for statement in _SOURCES
}
LINES = load(__file__, "lines", line=_LINE)
CHANGEABLE = load(__file__, "changeable")
MAYBE_SEEN = load(__file__, "maybe_seen")
PULSE = load(__file__, "pulse", line=_LINE, columns=_COLUMNS, nearest=_NEAREST)
CODES = load(__file__, "codes")
WORKERS = load(__file__, "workers")
ACTIONS = load(__file__, "actions")
STORY = load(__file__, "story", line=_LINE)
STORY_LOGS = load(__file__, "story_logs")

_RUN = """
select coalesce(pg_catalog.sum(affected), 0::numeric)::integer as done, pg_catalog.max(at) as latest
  from push_listener.actions
  where run = %(run)s::uuid
"""
_NOW = "select pg_catalog.now() as now"

Connect = Callable[[], AbstractAsyncContextManager[Connection]]

_FOREVER = ("-infinity", "infinity")


class Reading:
    """Reads from the database. Every method raises psycopg.Error.

    Args:
        connect: gives a connection in autocommit, for one use.
        connect_pulse: gives a connection for ``pulse``, so that ``pulse`` and the searches of people do not wait for
            each other. None: ``connect``.
        window: the most entries of an index that one search looks at.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        connect_pulse: Connect | None = None,
        window: int = WINDOW,
    ) -> None:
        self._connect = connect
        self._connect_pulse = connect_pulse or connect
        self._window = window

    # --- The first screen

    async def pulse(self, latest: int = 20) -> Pulse:
        """The figures that change from second to second, read in one statement.

        How late the queue is follows the same rule as in the metrics, but only a bounded number of waiting pushes is
        read: see ``Pulse.is_whole``.
        """
        async with _transaction(self._connect_pulse) as cursor:
            row = await _one(cursor, PULSE, {"latest": latest, "near": latest, "window": _PULSE_WINDOW})
        return Pulse(
            at=_time(row["at"]),
            sent=row["sent"],
            failed=orjson.loads(row["failed"]),
            oldest_due=row["oldest_due"],
            workers=row["workers"],
            is_due=row["is_due"],
            retrying=row["retrying"],
            is_whole=row["is_whole"],
            latest=[_line(line) for line in orjson.loads(row["latest"])],
        )

    async def codes(self) -> list[CodeGroup]:
        """The dead and expired pushes by error code, the most frequent first; '' for pushes without a code.

        For each code it looks at the newest 2,000 pushes. No count is more than 1,000.
        """
        async with self._transaction() as cursor:
            rows = await _all(cursor, CODES, {"codes": _MOST_CODES, "window": _CODE_WINDOW})
        groups = [
            CodeGroup(
                row["status"],
                _cut(row["code"], _CODE),
                Count(
                    min(row["pushes"], _COUNTED), row["pushes"] <= _COUNTED and row["looked"] < _CODE_WINDOW
                ),
                _time(row["latest"]),
            )
            for row in rows
        ]
        return sorted(groups, key=lambda group: (-group.pushes.number, group.code, group.status))

    async def workers(self) -> list[WorkerLine]:
        """The workers that have not signed off, and the last ones that ended."""
        values = {"workers": _MOST_WORKERS, "ended": _ENDED_WORKERS, "window": self._window}
        async with self._transaction() as cursor:
            rows = await _all(cursor, WORKERS, values)
        return [
            WorkerLine(
                id=row["id"],
                name=row["name"],
                started_at=_time(row["started_at"]),
                stopped_at=_time_or_none(row["stopped_at"]),
                is_alive=row["is_alive"],
                is_lost=row["is_lost"],
                in_flight=Count(row["pushes"], row["is_exact"]),
                is_guarded=row["is_guarded"],
            )
            for row in rows
        ]

    # --- Lists

    async def pushes(self, filter: Filter, *, after: str | None = None, limit: int = 50) -> Page:
        """A part of the list of pushes that match a filter, in the order that ``order`` defines.

        Raises FilterFault if ``after`` is not a place in this list.
        """
        plan = order.plan(filter)
        start = order.decode(after, plan)
        async with self._transaction() as cursor:
            now = (await _one(cursor, _NOW))["now"]
            part, lines = await self._part(cursor, plan, filter, start, limit)
        return Page(
            lines,
            order.encode(part.positions) if part.has_more else None,
            part.is_partial,
            first=_first(plan, lines, now),
        )

    async def newer(
        self, filter: Filter, than: str, *, without: Sequence[UUID] = (), most: int = 100
    ) -> Count:
        """How many pushes are newer than a page: they would come before its first row.

        A list of waiting pushes is not in the order of their changes. There it is the number of pushes that were
        inserted, were requeued, or failed again since the page was read. Raises FilterFault.

        Args:
            filter: the filter of the page.
            than: ``Page.first`` of the page.
            without: the pushes on the page. They never count, even if they have changed.
            most: the number at which counting stops.
        """
        since = _parse_first(than)
        plan = order.plan(filter)
        number, is_exact = 0, True
        async with self._transaction() as cursor:
            for source in plan.sources:
                values = {**_values(source, filter, self._window), "most": most + 1, "without": list(without)}
                if source.key == "due_at":
                    changed = _time(since)
                    values |= {"at": since, "since": max(changed, filter.since or changed)}
                else:
                    values["at_least"] = since
                row = await _one(cursor, COUNTS[source.statement], values)
                number += row["matches"]
                is_exact = is_exact and not row["is_edge"]
        return Count(min(number, most), is_exact and number <= most)

    async def count(self, filter: Filter, most: int = 1000) -> Count:
        """How many pushes match a filter. Counting stops at ``most``."""
        plan = order.plan(filter, is_list=False)
        number, is_exact = 0, True
        async with self._transaction() as cursor:
            for source in plan.sources:
                values = {**_values(source, filter, self._window), "most": most + 1 - number}
                row = await _one(cursor, COUNTS[source.statement], values)
                number += row["matches"]
                is_exact = is_exact and not row["is_edge"]
                if number > most:
                    break
        return Count(min(number, most), is_exact and number <= most)

    async def lines(self, ids: Sequence[UUID]) -> list[PushLine]:
        """Pushes by their ids, in the order of the ids. Ids that do not exist are left out."""
        async with self._transaction() as cursor:
            return await self._lines(cursor, ids)

    async def ended(self, filter: Filter, since: datetime, most: int = 20_000) -> Ended:
        """The pushes that ended since a time and match a filter; failed tries too if the filter asks for them.

        Args:
            filter: its fields ``since`` and ``until`` are ignored.
            since: by the database's clock.
            most: the most entries of an index that are looked at, the newest first.
        """
        lines: list[PushLine] = []
        edges: list[datetime] = []
        async with self._transaction() as cursor:
            now = (await _one(cursor, _NOW))["now"]
            for source in order.ended(filter.status).sources:
                values = {
                    **_values(source, filter, most),
                    "since": since,
                    "until": _FOREVER[1],
                    "is_given_up": False,
                }
                rows = await _all(cursor, SCANS[source.statement], {**values, "limit": most + 1})
                lines += [_line(row) for row in rows if row["matches"]]
                edges += [_time(row["updated_at"]) for row in rows if row["is_edge"]]
        return Ended(lines, now, max(edges, default=None))

    async def now(self) -> datetime:
        """The time by the database's clock."""
        async with self._transaction() as cursor:
            now: datetime = (await _one(cursor, _NOW))["now"]
        return now

    # --- One push

    async def story(self, push_id: UUID) -> Story | None:
        """Everything about one push, with its newest 200 log rows; None if it does not exist."""
        async with self._transaction() as cursor:
            await cursor.execute(STORY, {"id": push_id}, prepare=False)
            row = await cursor.fetchone()
            if row is None:
                return None
            values = {"id": push_id, "user": row["user_id"], "rows": _LOG_ROWS + 1}
            logs = await _all(cursor, STORY_LOGS, values)
        is_cut = len(logs) > _LOG_ROWS
        shown = list(reversed(logs[:_LOG_ROWS]))
        return Story(
            line=_line(row),
            user=row["user_id"],
            collapse_key=_cut(row["collapse_key"], _SHORT),
            idempotency_key=_cut(row["idempotency_key"], _SHORT),
            expires_at=_time_or_none(row["expires_at"]),
            sent_at=_time_or_none(row["sent_at"]),
            delivered_at=_time_or_none(row["delivered_at"]),
            last_retry_at=_time_or_none(row["last_retry_at"]),
            fcm_message_id=_cut(row["fcm_message_id"], _MESSAGE_ID),
            claimed_by=row["claimed_by"],
            delivery_attempts=row["delivery_attempts"],
            lost_claims=row["lost_claims"],
            unwritable=row["unwritable"] or None,
            attempts=[_attempt(log) for log in shown if not log["is_receipt"]],
            receipts=[
                Receipt(_time(log["at"]), log["device"], _cut(log["status"], _CODE))
                for log in shown
                if log["is_receipt"]
            ],
            is_cut=is_cut,
        )

    # --- Actions

    async def ids(
        self,
        filter: Filter,
        what: Action,
        until: datetime | None,
        after: str | None = None,
        limit: int = 500,
    ) -> tuple[list[UUID], str | None]:
        """The next pushes for an action on all that match, and a cursor for the next search (None: this was the last).

        The ids may be empty although a cursor is returned, because a search looks at a bounded number of entries.
        Raises FilterFault.

        Args:
            filter: what the pushes must match.
            what: the action. Pushes that it cannot change are left out; cancelled pushes are requeued only if the
                filter asks for them.
            until: pushes that changed later are left out.
            after: the cursor; None: begin at the start.
            limit: the most ids.
        """
        plan = order.plan(filter, action=what)
        start = order.decode(after, plan)
        async with self._transaction() as cursor:
            part, _ = await self._part(cursor, plan, filter, start, limit, what=what, until=until)
        ids = [entry.id for _, entry in part.entries]
        return ids, order.encode(part.positions) if part.has_more else None

    async def preview(self, filter: Filter, what: Action, ids: Sequence[UUID] | None = None) -> Preview:
        """What an action would do now, either to all pushes that match, or to the pushes with the given ids.

        Counting all that match stops at 1,000, or after about a sixth of a second.

        Args:
            filter: what the pushes must match. It is ignored if ``ids`` are given.
            what: the action. Pushes that it cannot change are left out.
            ids: no more than 1,000.
        """
        if ids is not None:
            return await self._preview_named(ids, what)
        async with self._transaction() as cursor:
            until = (await _one(cursor, _NOW))["now"]
            plan = order.plan(filter, action=what)
            positions = {source.name: source.start for source in plan.sources}
            found: list[UUID] = []
            has_more, began = True, time.monotonic()
            while has_more and len(found) <= _COUNTED and time.monotonic() - began < _PREVIEW_S:
                part, _ = await self._part(
                    cursor, plan, filter, positions, _COUNTED + 1 - len(found), what=what, until=until
                )
                found += [entry.id for _, entry in part.entries]
                positions, has_more = part.positions, part.has_more
            seen = await _maybe_seen(cursor, what, found[:_COUNTED])
            examples = await self._lines(cursor, found[:_EXAMPLES])
        return Preview(
            Count(min(len(found), _COUNTED), not has_more and len(found) <= _COUNTED),
            examples,
            Count(seen, what != "requeue" or (not has_more and len(found) <= _COUNTED)),
            until,
        )

    async def _preview_named(self, ids: Sequence[UUID], what: Action) -> Preview:
        async with self._transaction() as cursor:
            until = (await _one(cursor, _NOW))["now"]
            rows = await _all(cursor, CHANGEABLE, {"ids": list(ids), "what": what})
            found = [row["id"] for row in rows]
            seen = await _maybe_seen(cursor, what, found)
            examples = await self._lines(cursor, found[:_EXAMPLES])
        return Preview(Count(len(found), True), examples, Count(seen, True), until)

    async def actions(self, before: int | None = None, limit: int = 50) -> list[ActionLine]:
        """What people did, the newest first, each action with no more than 20 ids.

        ``before`` is the id of the last line of the previous part of the list.
        """
        async with self._transaction() as cursor:
            rows = await _all(cursor, ACTIONS, {"before": before, "limit": limit})
        return [ActionLine(**row) for row in rows]

    async def run_progress(self, run: UUID) -> tuple[int, datetime | None]:
        """How many pushes an action on all that match has changed so far, and the time of its last change."""
        async with self._transaction() as cursor:
            row = await _one(cursor, _RUN, {"run": run})
        return row["done"], row["latest"]

    # --- How

    async def _part(
        self,
        cursor: AsyncCursor[DictRow],
        plan: Plan,
        filter: Filter,
        start: Mapping[str, Position],
        limit: int,
        *,
        what: Action | None = None,
        until: datetime | None = None,
    ) -> tuple[Part, list[PushLine]]:
        scans: list[list[Entry]] = []
        lines: dict[UUID, PushLine] = {}
        wanted = limit
        for source in plan.sources:
            values = _values(source, filter, self._window, what=what, until=until)
            rows = await _behind(cursor, source, values, start[source.name], wanted + 1)
            scan = [entry for entry, _ in rows]
            lines |= {entry.id: line for entry, line in rows}
            scans.append(scan)
            if not plan.is_merged:
                wanted -= sum(entry.matches for entry in scan)
                if wanted < 0 or (scan and scan[-1].is_edge):
                    scans += [[] for _ in plan.sources[len(scans) :]]
                    break
        part = order.merge(plan, scans, start, limit)
        return part, [lines[entry.id] for _, entry in part.entries]

    async def _lines(self, cursor: AsyncCursor[DictRow], ids: Sequence[UUID]) -> list[PushLine]:
        return [_line(row) for row in await _all(cursor, LINES, {"ids": list(ids)})]

    def _transaction(self) -> AbstractAsyncContextManager[AsyncCursor[DictRow]]:
        return _transaction(self._connect)


@asynccontextmanager
async def _transaction(connect: Connect) -> AsyncIterator[AsyncCursor[DictRow]]:
    async with connect() as conn:
        await conn.execute(_BEGIN, prepare=False)
        try:
            yield conn.cursor(row_factory=dict_row)
        finally:
            if conn.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                await conn.execute("rollback", prepare=False)


async def _all(
    cursor: AsyncCursor[DictRow], statement: LiteralString, values: Mapping[str, Any] | None = None
) -> list[DictRow]:
    # Statements are not prepared, because a transaction pooler loses them, and each filter needs its own plan.
    await cursor.execute(statement, values, prepare=False)
    return await cursor.fetchall()


async def _one(
    cursor: AsyncCursor[DictRow], statement: LiteralString, values: Mapping[str, Any] | None = None
) -> DictRow:
    (row,) = await _all(cursor, statement, values)
    return row


async def _maybe_seen(cursor: AsyncCursor[DictRow], what: Action, ids: Sequence[UUID]) -> int:
    """How many of these pushes a person may see twice."""
    if what != "requeue":
        return 0
    seen: int = (await _one(cursor, MAYBE_SEEN, {"ids": list(ids)}))["count"]
    return seen


def _values(
    source: Source,
    filter: Filter,
    window: int,
    *,
    what: Action | None = None,
    until: datetime | None = None,
) -> dict[str, Any]:
    """The parameters for scanning or counting a source."""
    latest = [time for time in (filter.until, until) if time is not None]
    return {
        "statuses": list(source.statuses),
        "user": filter.user,
        "code": filter.code,
        "since": filter.since or _FOREVER[0],
        "until": min(latest) if latest else _FOREVER[1],
        "kind": filter.kind,
        "is_in_time": what == "requeue",
        "is_given_up": source.statement == "given_up",
        "lane": source.lane,
        "span": source.span,
        "near": _NEAR,
        "window": window,
        **_place(source.start),
        "is_whole": True,
        "at_least": -math.inf,
        "without": [],
    }


def _place(position: Position) -> dict[str, Any]:
    """The parameters of a scan that begins behind a position."""
    beyond, own = position.tids
    return {"at": position.key, "beyond": beyond, "within": own, "behind": position.id}


async def _behind(
    cursor: AsyncCursor[DictRow],
    source: Source,
    values: Mapping[str, Any],
    position: Position,
    limit: int,
    *,
    is_first: bool = True,
) -> list[tuple[Entry, PushLine]]:
    """The entries behind a position that match, and the entry at which the scan had to end, if there is one."""
    if not source.is_backward:
        return await _scanned(cursor, SCANS[source.statement], values, position, limit)
    found: list[tuple[Entry, PushLine]] = []
    is_whole = position == source.start
    if not is_whole:
        found = await _scanned(cursor, SAME[source.statement], values, position, limit)
        if len(found) == limit or (found and found[-1][0].is_edge):
            return found
    rest = {**values, "is_whole": is_whole}
    found += await _scanned(
        cursor, SCANS[source.statement], rest, position, limit - len(found), has_blocks=False
    )
    if is_first and len(found) == 1 and found[0][0].is_edge:  # perhaps all entries have the same key
        return await _behind(cursor, source, values, found[0][0].place, limit, is_first=False)
    return found


async def _scanned(
    cursor: AsyncCursor[DictRow],
    statement: LiteralString,
    values: Mapping[str, Any],
    position: Position,
    limit: int,
    *,
    has_blocks: bool = True,
) -> list[tuple[Entry, PushLine]]:
    found = []
    for row in await _all(cursor, statement, {**values, **_place(position), "limit": limit}):
        place = Position(row["key"], row["block"], row["id"])
        if row["is_cut"]:
            place = Position.before(row["key"], row["block"] if has_blocks else 0)
        found.append((Entry(row["id"], place, bool(row["matches"]), row["is_edge"]), _line(row)))
    return found


def _first(plan: Plan, lines: Sequence[PushLine], now: datetime) -> str:
    """The value that ``newer`` compares with: the key of the first row, or now if added rows come last in the list."""
    at = now
    if lines and plan.sources[0].key == "created_at":
        at = lines[0].created_at
    elif lines and plan.is_merged:
        at = lines[0].updated_at
    return str(round(at.timestamp() * 1_000_000))


def _parse_first(text: str) -> float:
    """The first moment after ``Page.first``, in Unix seconds."""
    return order.seconds(text, "than must be what a page says of its first row") + 1e-6


def _time(seconds: float) -> datetime:
    """A time of the database. If Python's range of dates is too small for it, the nearest date that Python has."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return (datetime.max if seconds > 0 else datetime.min).replace(tzinfo=UTC)


def _time_or_none(seconds: float | None) -> datetime | None:
    return None if seconds is None else _time(seconds)


def _seconds(value: float | str) -> float:
    """JSON has no infinite numbers, so Postgres writes them as texts."""
    return float(value)


def _cut(text: Any, most: int) -> Any:
    """A text, cut and marked with ``CUT`` if it has more than ``most`` characters. None stays None."""
    return text if text is None or len(text) <= most else text[:most] + CUT


def _answer(text: str | None) -> str | None:
    return None if text is None else without_tokens(_cut(text, _LONG))


def _line(row: Mapping[str, Any]) -> PushLine:
    return PushLine(
        id=row["id"] if isinstance(row["id"], UUID) else UUID(row["id"]),
        status=row["status"],
        priority=row["priority"],
        kind=row["kind"],
        target=_cut(row["target"], _SHORT),
        title=_cut(row["title"], _SHORT),
        error_code=_cut(row["error_code"], _CODE),
        last_error=_answer(row["last_error"]),
        retry_count=row["retry_count"],
        created_at=_time(_seconds(row["created_at"])),
        updated_at=_time(_seconds(row["updated_at"])),
        due_at=None if row["due_at"] is None else _time(_seconds(row["due_at"])),
    )


def _attempt(log: Mapping[str, Any]) -> Attempt:
    attempt = log["attempt"]
    return Attempt(
        at=_time(log["at"]),
        attempt=int(attempt) if attempt is not None and attempt.is_integer() else None,
        device=log["device"],
        platform=_cut(log["platform"], _CODE),
        status=_cut(log["status"], _CODE),
        code=_cut(log["code"], _CODE),
        answer=_answer(log["answer"]),
        message_id=_cut(log["message_id"], _MESSAGE_ID),
    )
