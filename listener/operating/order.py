"""In which order a search looks, and where a list goes on. Pure.

A search looks through *sources*: each is the entries of one index, in its order. A list over several sources is their
merge. A place in it is a *position* in each source: a key, and how many entries with this key are behind.

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

An action on all that match uses the waiting pushes in the order in which they are due instead of those nearest to now.
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

from listener.operating.filters import Filter, FilterFault

Action = Literal["requeue", "cancel"]
Key = Literal["created_at", "updated_at", "due_at"]
Span = Literal["any", "ahead", "behind"]

WAITING = ("pending", "processing", "failed")
_ALL = ("pending", "processing", "sent", "delivered", "failed", "dead", "expired", "cancelled")
_ENDED = ("dead", "expired")
_GIVEN_UP = ("dead", "expired", "failed", "cancelled")
_OVER = ("sent", "delivered", "expired", "cancelled")


@dataclass(frozen=True, slots=True)
class Source:
    """The entries of one index that may match, in its order."""

    name: str
    """In cursors; unique among the sources of one search."""
    statement: Literal["by_user", "by_code", "given_up", "over", "waiting", "near"]
    key: Key
    statuses: tuple[str, ...]
    """Of the entries, those with these statuses may match."""
    holds: tuple[str, ...]
    """The statuses that the index holds."""
    lane: int = 0
    span: Span = "any"

    @property
    def is_newest_first(self) -> bool:
        return self.key != "due_at"

    @property
    def start(self) -> Position:
        """Before the first entry."""
        return Position(math.inf if self.is_newest_first else -math.inf, 0)


class Position(NamedTuple):
    """A place in a source: behind ``skip`` entries with this key."""

    key: float
    """Unix seconds; infinite where the column is."""
    skip: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a search looks through."""

    sources: tuple[Source, ...]
    is_merged: bool
    """Whether the keys decide between the sources; else one comes after the other."""


def plan(filter: Filter, *, action: Action | None = None, is_list: bool = True) -> Plan:  # as in the URL
    """The sources for a filter.

    Args:
        filter: what must apply.
        action: only what it may change.
        is_list: of the waiting pushes those nearest to now will do, in the order of their changes.
    """
    wanted = _wanted(filter, action)
    if filter.user is not None:
        return Plan((Source("user", "by_user", "created_at", wanted, _ALL),), is_merged=True)
    nearest = is_list and action is None and filter.status is None
    if filter.code is not None and filter.status in (None, "dead", "expired"):
        return _plan([Source("code", "by_code", "updated_at", _of(wanted, _ENDED), _ENDED)], wanted, nearest)
    given_up = _of(wanted, _GIVEN_UP)
    if filter.status is None and action is None:
        # The index of what is over has the expired and cancelled ones too; one of both is enough.
        given_up = ("dead", "failed")
    over = tuple(status for status in _of(wanted, _OVER) if status not in given_up)
    found = [
        Source("given", "given_up", "updated_at", given_up, _GIVEN_UP),
        Source("over", "over", "updated_at", over, _OVER),
    ]
    return _plan(found, wanted, nearest)


def ended(status: str | None) -> Plan:
    """The sources of what is over, those that changed last first; failed tries count only if they are asked for."""
    wanted = (status,) if status else ("dead", *_OVER)
    sources = (
        Source("given", "given_up", "updated_at", _of(wanted, ("dead", "failed")), _GIVEN_UP),
        Source("over", "over", "updated_at", _of(wanted, _OVER), _OVER),
    )
    return Plan(tuple(source for source in sources if source.statuses), is_merged=True)


def _wanted(filter: Filter, action: Action | None) -> tuple[str, ...]:
    """The statuses that may match. What a person cancelled is requeued only if the filter says so."""
    allowed = {
        None: _ALL,
        "requeue": _GIVEN_UP if filter.status == "cancelled" else ("dead", "expired", "failed"),
        "cancel": ("pending", "failed"),
    }[action]
    return tuple(status for status in allowed if filter.status in (None, status))


def _of(wanted: Iterable[str], statuses: Collection[str]) -> tuple[str, ...]:
    return tuple(status for status in wanted if status in statuses)


def _plan(found: Sequence[Source], wanted: Sequence[str], nearest: bool) -> Plan:
    """These sources, without those that hold nothing that is wanted, and those of the waiting pushes."""
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
    key: float
    position: int
    """The entries with this key up to this one, itself included."""
    matches: bool
    is_edge: bool
    """The scan ended here, because it has looked at as many entries as it may."""


@dataclass(slots=True)
class Part:
    """What a part of a list holds."""

    entries: list[tuple[Source, Entry]] = field(default_factory=list)
    """Those that match, in order."""
    positions: dict[str, Position] = field(default_factory=dict)
    """Behind what was looked at, by source."""
    has_more: bool = False
    is_partial: bool = False


def merge(plan: Plan, scans: Sequence[Sequence[Entry]], start: Mapping[str, Position], limit: int) -> Part:
    """The next ``limit`` entries that match.

    Args:
        plan: the sources.
        scans: what each returned, of at most ``limit`` + 1 entries; fewer, and no edge: there are no more.
        start: where each scan began.
        limit: of the entries.
    """
    part = Part(positions=dict(start))
    for source, entry in _in_order(plan, scans):
        if len(part.entries) == limit:
            part.has_more = True
            return part
        part.positions[source.name] = Position(entry.key, entry.position)
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
        key = -entry.key if source.is_newest_first else entry.key
        return (key, number) if plan.is_merged else (number, 0)

    streams: list[list[tuple[int, Source, Entry]]] = [
        [(number, source, entry) for entry in scan]
        for number, (source, scan) in enumerate(zip(plan.sources, scans, strict=True))
    ]
    for _, source, entry in heapq.merge(*streams, key=place):
        yield source, entry


# --- Cursors -----------------------------------------------------------------------------------------------------

_CURSOR = re.compile(r"([a-z]+-?)\.(-?\d{1,19}|-?inf)\.(\d{1,12})(?:\.((?:[0-9a-f]{32},?)+))?")
_SAYS = "after is not a place in this list: go back to its first page"

_TIMES = range(-210_866_803_200_000_000, 9_224_318_016_000_000_000)
"""In microseconds. Source: PostgreSQL, "Date/Time Types": from 4713 BC to 294276 AD."""


def seconds(text: str, fault: str) -> float:
    """Microseconds since 1970, as they stand in a URL, in seconds. Raises FilterFault for no time of Postgres."""
    # A text of any length comes from a URL, and int() refuses more than 4,300 digits.
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or int(text) not in _TIMES:
        raise FilterFault([fault])
    return int(text) / 1_000_000


def encode(positions: Mapping[str, Position], handed_out: Mapping[str, Iterable[UUID]] | None = None) -> str:
    """Positions as a text that a URL holds as it is."""
    parts = []
    for name, (key, skip) in positions.items():
        # Exact: a product of floats would not read back as the same key after the year 2255.
        at = str(round(Fraction(key) * 1_000_000)) if math.isfinite(key) else f"{'-' * (key < 0)}inf"
        ids = ",".join(push.hex for push in (handed_out or {}).get(name, ()))
        parts.append(f"{name}.{at}.{skip}" + (f".{ids}" if ids else ""))
    return "~".join(parts)


def decode(text: str | None, plan: Plan) -> tuple[dict[str, Position], dict[str, list[UUID]]]:
    """What ``encode`` made a text of; without a text, the start of each source. Raises FilterFault."""
    positions = {source.name: source.start for source in plan.sources}
    handed_out: dict[str, list[UUID]] = {}
    for part in text.split("~") if text else ():
        found = _CURSOR.fullmatch(part)
        if found is None or found[1] not in positions:
            raise FilterFault([_SAYS])
        name, at, skip, ids = found.groups()
        key = float(at) if "inf" in at else seconds(at, _SAYS)
        positions[name] = Position(key, int(skip))
        if ids:
            handed_out[name] = [UUID(hex=push) for push in ids.split(",") if push]
    return positions, handed_out
