"""In which order a search looks at pushes, and where the next part of a list begins. Pure.

A search looks through *sources*. A source is the entries of one index, in the order of the index. A list over several
sources merges them. A place in the list consists of a *position* in each source. A position is behind one entry, and
stays valid whatever happens to other entries. Many entries may have the same key, and an index has those in the order
of their place in the table. So a position is a key, a block, and an id.

======================  ===========================================================================  =================
the filter has          sources                                                                      order
======================  ===========================================================================  =================
user                    the user's pushes                                                            newest insert
code                    dead and expired with this code, and what waits and is due nearest to now    newest change
status pending          what waits, priority high first                                              due first
status failed           the same; then failed ones that are not tried again                          due first
status processing       what is claimed; then what is due although it is claimed: its lease is over  due first
any other status        the pushes that are given up, or the others that are over                    newest change
nothing of this         what is over, and what waits and is due nearest to now                       newest change
======================  ===========================================================================  =================

In the table above, a push is "over" if nothing more is done for it, "given up" if a person may requeue it, and
"nearest to now" if it is among the next to become due, or among the last that became due. An action on all pushes that
match does not use the waiting pushes nearest to now, but all waiting pushes in the order in which they are due.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, NamedTuple
from uuid import UUID

from listener.operating.changing import STATUSES, Action
from listener.operating.filters import Filter, FilterFault

Key = Literal["created_at", "updated_at", "due_at"]
Span = Literal["any", "ahead", "behind"]

WAITING = ("pending", "processing", "failed")
_ALL = ("pending", "processing", "sent", "delivered", "failed", "dead", "expired", "cancelled")
_ENDED = ("dead", "expired")
_GIVEN_UP = ("dead", "expired", "failed", "cancelled")
_OVER = ("sent", "delivered", "expired", "cancelled")

_MOST_BLOCKS = 2**32 - 1
"""No table has more blocks. Source: MaxBlockNumber, storage/block.h of Postgres."""
_LAST = UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class Source:
    """The entries of one index that may match, in its order."""

    name: str
    """The name in cursors, unique among the sources of one search."""
    statement: Literal["by_user", "by_code", "given_up", "over", "waiting", "near"]
    key: Key
    statuses: tuple[str, ...]
    """Only entries with these statuses may match."""
    holds: tuple[str, ...]
    """The statuses of all entries of the index."""
    lane: int = 0
    span: Span = "any"

    @property
    def is_newest_first(self) -> bool:
        return self.key != "due_at"

    @property
    def is_backward(self) -> bool:
        """Whether the index is read backwards.

        Entries with the same key then come in no useful order. Source: _bt_readpage, nbtsearch.c of Postgres, which
        returns each posting list in ascending order.
        """
        return self.statement in ("given_up", "over")

    @property
    def start(self) -> Position:
        """The position before the first entry."""
        key = math.inf if self.is_newest_first else -math.inf
        return Position(key, 0, UUID(int=0)) if self.has_ids_in_order else Position(key, -2, _LAST)

    @property
    def has_ids_in_order(self) -> bool:
        """Whether the index orders entries with the same key by id; otherwise it orders them by block."""
        return self.statement in ("by_user", "near")


class Position(NamedTuple):
    """A place in a source: behind the entry with this id, or behind the place where it would be."""

    key: float
    """The time in the index, in Unix seconds. It is infinite if the column is."""
    block: int
    """The block of the table that the row is in; 0 if the index orders entries with the same key by id."""
    id: UUID

    @classmethod
    def before(cls, key: float, block: int = 0) -> Position:
        """The position before the first entry with this key in this or a later block."""
        return cls(key, block - 1, _LAST)

    @property
    def tids(self) -> tuple[str, str]:
        """The tids at which the next block and this block of the table begin."""
        beyond, own = (min(max(block, 0), _MOST_BLOCKS) for block in (self.block + 1, self.block))
        return f"({beyond},0)", f"({own},0)"


@dataclass(frozen=True, slots=True)
class Plan:
    """The sources that a search looks through."""

    sources: tuple[Source, ...]
    is_merged: bool
    """Whether the sources are merged by their keys. Otherwise one source comes after the other."""


def plan(filter: Filter, *, action: Action | None = None, is_list: bool = True) -> Plan:  # as in the URL
    """The sources for a filter.

    Args:
        filter: what the pushes must match.
        action: if given, only pushes that it may change.
        is_list: whether only the waiting pushes nearest to now are needed, in the order of their changes.
    """
    wanted = _wanted(filter, action)
    if filter.user is not None:
        return Plan((Source("user", "by_user", "created_at", wanted, _ALL),), is_merged=True)
    nearest = is_list and action is None and filter.status is None
    if filter.code is not None and filter.status in (None, "dead", "expired"):
        return _plan([Source("code", "by_code", "updated_at", _of(wanted, _ENDED), _ENDED)], wanted, nearest)
    given_up = _of(wanted, _GIVEN_UP)
    if filter.status is None and action is None:
        # Both indexes hold the expired and the cancelled pushes. One of them is enough.
        given_up = ("dead", "failed")
    over = tuple(status for status in _of(wanted, _OVER) if status not in given_up)
    found = [
        Source("given", "given_up", "updated_at", given_up, _GIVEN_UP),
        Source("over", "over", "updated_at", over, _OVER),
    ]
    return _plan(found, wanted, nearest)


def ended(status: str | None) -> Plan:
    """The sources of pushes that are over, the last changed first. Failed tries are included only if asked for."""
    wanted = (status,) if status else ("dead", *_OVER)
    sources = (
        Source("given", "given_up", "updated_at", _of(wanted, ("dead", "failed")), _GIVEN_UP),
        Source("over", "over", "updated_at", _of(wanted, _OVER), _OVER),
    )
    return Plan(tuple(source for source in sources if source.statuses), is_merged=True)


def _wanted(filter: Filter, action: Action | None) -> tuple[str, ...]:
    """The statuses that may match. Cancelled pushes are requeued only if the filter asks for them."""
    allowed = {
        None: _ALL,
        "requeue": _GIVEN_UP if filter.status == "cancelled" else ("dead", "expired", "failed"),
        "cancel": STATUSES["cancel"],
    }[action]
    return tuple(status for status in allowed if filter.status in (None, status))


def _of(wanted: Iterable[str], statuses: Collection[str]) -> tuple[str, ...]:
    return tuple(status for status in wanted if status in statuses)


def _plan(found: Sequence[Source], wanted: Sequence[str], nearest: bool) -> Plan:
    """Drops the sources that hold nothing wanted, and adds the sources of the waiting pushes."""
    sources = [source for source in found if source.statuses]
    waiting = _of(wanted, WAITING)
    if not waiting:
        return Plan(tuple(sources), is_merged=True)
    if nearest:
        return Plan((*sources, Source("near", "near", "updated_at", waiting, WAITING)), is_merged=True)
    spans: tuple[Span, ...] = ("ahead", "behind") if waiting == ("processing",) else ("any",)
    lanes = [
        Source(f"{name}{'-' * (span == 'behind')}", "waiting", "due_at", waiting, WAITING, lane, span)
        for span in spans
        for lane, name in enumerate(("high", "normal"))
    ]
    return Plan((*lanes, *sources), is_merged=False)


# --- One part of a list ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that a scan of a source returned."""

    id: UUID
    place: Position
    """The position behind this entry, or before it if the next scan must look at it again."""
    matches: bool
    is_edge: bool
    """Whether the scan ended here because it had looked at as many entries as it may."""


@dataclass(slots=True)
class Part:
    """A part of a list."""

    entries: list[tuple[Source, Entry]] = field(default_factory=list)
    """The entries that match, in order."""
    positions: dict[str, Position] = field(default_factory=dict)
    """For each source, the position behind the entries that were looked at."""
    has_more: bool = False
    is_partial: bool = False


def merge(plan: Plan, scans: Sequence[Sequence[Entry]], start: Mapping[str, Position], limit: int) -> Part:
    """The next ``limit`` entries that match.

    Args:
        plan: the sources.
        scans: what the scan of each source returned, at most ``limit`` + 1 entries. A source has no more entries if its
            scan returned fewer, without an edge.
        start: where each scan began.
        limit: the most entries.
    """
    part = Part(positions=dict(start))
    for source, entry in _in_order(plan, scans):
        if len(part.entries) == limit:
            part.has_more = True
            return part
        part.positions[source.name] = entry.place
        if entry.matches:
            part.entries.append((source, entry))
        if entry.is_edge:
            part.has_more = True
            part.is_partial = len(part.entries) < limit
            return part
    return part


def _in_order(plan: Plan, scans: Sequence[Sequence[Entry]]) -> Iterator[tuple[Source, Entry]]:
    def place(found: tuple[int, Source, Entry]) -> tuple[float, int]:
        number, source, entry = found
        key = -entry.place.key if source.is_newest_first else entry.place.key
        return (key, number) if plan.is_merged else (number, 0)

    streams: list[list[tuple[int, Source, Entry]]] = [
        [(number, source, entry) for entry in scan]
        for number, (source, scan) in enumerate(zip(plan.sources, scans, strict=True))
    ]
    for _, source, entry in heapq.merge(*streams, key=place):
        yield source, entry


# --- Cursors -----------------------------------------------------------------------------------------------------

_CURSOR = re.compile(r"([a-z]+-?)\.(-?\d{1,19}|-?inf)\.(-?\d{1,10})\.([0-9a-f]{32})")
_SAYS = "after is not a place in this list: go back to its first page"

_TIMES = range(-210_866_803_200_000_000, 9_224_318_016_000_000_000)
"""In microseconds. Source: PostgreSQL, "Date/Time Types": from 4713 BC to 294276 AD."""


def seconds(text: str, fault: str) -> float:
    """Converts microseconds since 1970, as in a URL, to seconds. Raises FilterFault if Postgres has no such time."""
    # A URL may hold a text of any length, and int() refuses more than 4,300 digits.
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or int(text) not in _TIMES:
        raise FilterFault([fault])
    return int(text) / 1_000_000


def encode(positions: Mapping[str, Position]) -> str:
    """Positions as a text that needs no escaping in a URL."""
    parts = []
    for name, (key, block, push) in positions.items():
        # Fraction is exact. After the year 2255, a product of floats would not read back as the same key.
        at = str(round(Fraction(key) * 1_000_000)) if math.isfinite(key) else f"{'-' * (key < 0)}inf"
        parts.append(f"{name}.{at}.{block}.{push.hex}")
    return "~".join(parts)


def decode(text: str | None, plan: Plan) -> dict[str, Position]:
    """Reads a text that ``encode`` made. Without a text, returns the start of each source. Raises FilterFault."""
    positions = {source.name: source.start for source in plan.sources}
    for part in text.split("~") if text else ():
        found = _CURSOR.fullmatch(part)
        if found is None or found[1] not in positions:
            raise FilterFault([_SAYS])
        name, at, block, push = found.groups()
        key = float(at) if "inf" in at else seconds(at, _SAYS)
        positions[name] = Position(key, int(block), UUID(hex=push))
    return positions
