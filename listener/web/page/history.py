"""The last 15 minutes of data for the charts, and an hour of data for the verdict. Pure; times are Unix seconds.

Two sources add data: each reading for the metrics, also while nobody watches the page, and the sample that is taken
each second while somebody watches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from listener.metrics.shared import Figures
from listener.operating.records import Pulse

SPAN_S = 900.0
STEP_S = 5.0
"""The least time between two points. Only the newest point may be closer."""
_HOUR_S = 3600.0
_MINUTE_S = 60.0

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Sums:
    """The figures of the database at one moment. The sums cover today and yesterday (UTC)."""

    sent: int
    failed: Mapping[str, int]
    oldest_due: float

    @classmethod
    def of_pulse(cls, pulse: Pulse) -> Sums:
        """The figures of a sample."""
        return cls(pulse.sent, pulse.failed, pulse.oldest_due)

    @classmethod
    def of_figures(cls, figures: Figures) -> Sums:
        """The figures of a reading for the metrics."""
        return cls(figures.sent, figures.failed, max(figures.oldest_due.values(), default=0.0))


@dataclass(frozen=True, slots=True)
class Point:
    """One moment."""

    at: float
    sums: Sums | None
    """None: the database could not be read."""
    counts: tuple[int, ...] = ()
    """The counts of the histogram push_insert_to_send_seconds in this process, bucket by bucket."""


@dataclass(frozen=True, slots=True)
class Series:
    """The data of the charts. Each list is as long as ``at``; None is a gap."""

    at: Sequence[float] = ()
    """Unix seconds, ascending."""
    accepted: Sequence[float | None] = ()
    """Pushes a second that FCM accepted, from all processes."""
    failed: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Pushes a second that ended dead or expired, from all processes, by error code."""
    oldest_due: Sequence[float | None] = ()
    """For how many seconds the push that waited longest had been due."""
    p50: Sequence[float | None] = ()
    """Median seconds from due to the first request to FCM, of this process alone."""
    p99: Sequence[float | None] = ()


class History:
    """A bounded number of points.

    Args:
        bounds: the upper bounds of the buckets in seconds; the last one is infinite.
        counts: returns the present counts of the buckets.
        clock: returns Unix seconds.
    """

    def __init__(
        self, bounds: Sequence[float], counts: Callable[[], tuple[int, ...]], clock: Callable[[], float]
    ) -> None:
        self._bounds = bounds
        self._counts = counts
        self._clock = clock
        self._points: list[Point] = []
        self._hour: list[Point] = []  # the readings, about one a minute

    def note(self, sums: Sums | None) -> None:
        """Adds the figures of this moment; None: they could not be read."""
        point = Point(self._clock(), sums, self._counts())
        self._points = added(self._points, point)
        if sums is not None:
            self._hour = added(self._hour, point, span=_HOUR_S, step=_MINUTE_S)

    def note_figures(self, figures: Figures | None) -> None:
        """Adds a reading for the metrics; None: it failed, or the readings have stopped."""
        self.note(None if figures is None else Sums.of_figures(figures))

    def series(self) -> Series:
        """The present data of the charts."""
        return series(self._points, self._bounds)

    def accepted_within(self, seconds: float) -> int | None:
        """Pushes of all processes that FCM accepted in the last ``seconds``; None: not all of that time was read."""
        return accepted_since(self._points, self._clock() - seconds)

    def ended_within(self, seconds: float) -> tuple[int, Mapping[str, int]]:
        """Pushes that FCM accepted in the last ``seconds`` (at most an hour), and pushes that failed, by code.

        The count begins at the last reading before that time, so it may be higher. Pushes that ended before the first
        reading, or around midnight (UTC), are not counted.
        """
        return ended_since(self._hour, self._clock() - seconds)


def added(
    points: Sequence[Point], point: Point, *, span: float = SPAN_S, step: float = STEP_S
) -> list[Point]:
    """The points with ``point`` added, and without points that are too old.

    The last of the old points is dropped if it is too close to the one before, unless only it shows a gap.
    """
    kept = [each for each in points if point.at - span <= each.at < point.at]
    if len(kept) > 1 and kept[-1].at - kept[-2].at < step:
        before, newest = kept[-2:]
        if newest.sums is not None or before.sums is None or point.sums is None:
            kept.pop()
    return [*kept, point]


def series(points: Sequence[Point], bounds: Sequence[float]) -> Series:
    """The data of the charts from these points. A rate is for the time since the previous point; the first has none."""
    codes = sorted({code for point in points if point.sums is not None for code in point.sums.failed})
    pairs = [*pairwise(points)]
    failed = {code: [None, *(_rate(one, two, _failed(code)) for one, two in pairs)] for code in codes}
    spread = [(), *(_differences(one.counts, two.counts) for one, two in pairs)]
    first = points[:1]
    return Series(
        at=[point.at for point in points],
        accepted=[*(None for _ in first), *(_rate(one, two, _sent) for one, two in pairs)],
        failed={code: rates for code, rates in failed.items() if any(rates)},
        oldest_due=[None if point.sums is None else point.sums.oldest_due for point in points],
        p50=[quantile(counts, bounds, 0.5) for counts in spread[: len(points)]],
        p99=[quantile(counts, bounds, 0.99) for counts in spread[: len(points)]],
    )


def accepted_since(points: Sequence[Point], since: float) -> int | None:
    """Pushes that FCM accepted since the last point before ``since``; None: there is no such point, or a gap."""
    before = [point for point in points if point.at <= since]
    window = [*before[-1:], *(point for point in points if point.at > since)]
    if not before or len(window) < 2 or any(point.sums is None for point in window):
        return None
    return sum(_grown(one, two, _sent) or 0 for one, two in pairwise(window))


def ended_since(points: Sequence[Point], since: float) -> tuple[int, dict[str, int]]:
    """By how much the sums have grown since ``since``: accepted pushes, and failed pushes by code."""
    pairs = [(one, two) for one, two in pairwise(points) if two.at > since]
    codes = {code for _, two in pairs if two.sums is not None for code in two.sums.failed}
    failed = {code: sum(_grown(one, two, _failed(code)) or 0 for one, two in pairs) for code in sorted(codes)}
    accepted = sum(_grown(one, two, _sent) or 0 for one, two in pairs)
    return accepted, {code: number for code, number in failed.items() if number}


def quantile(counts: Sequence[int], bounds: Sequence[float], share: float) -> float | None:
    """The seconds below which ``share`` of the counted values lie, if each bucket is filled evenly; None: no values.

    Values beyond the last finite bound count as if they were at that bound.
    """
    total = sum(counts)
    if not total:
        return None
    rank, below, start = share * total, 0, 0.0
    for count, end in zip(counts, bounds, strict=True):
        if count and below + count >= rank:
            if end == float("inf"):
                return start
            return min(
                end, start + (end - start) * (rank - below) / count
            )  # a rounded sum may exceed the end
        below, start = below + count, start if end == float("inf") else end
    return start


def _sent(sums: Sums) -> int:
    return sums.sent


def _failed(code: str) -> Callable[[Sums], int]:
    return lambda sums: sums.failed.get(code, 0)


def _grown(one: Point, two: Point, what: Callable[[Sums], int]) -> int | None:
    """By how much a sum has grown between two points. None if nothing was read, and at midnight (UTC), when the sums
    lose a day.

    A sum may fall when a push is sent again. That counts as no growth, because it does not undo what was seen.
    """
    if one.sums is None or two.sums is None or one.at // _DAY_S != two.at // _DAY_S:
        return None
    return max(0, what(two.sums) - what(one.sums))


def _rate(one: Point, two: Point, what: Callable[[Sums], int]) -> float | None:
    grown = _grown(one, two, what)
    return None if grown is None else grown / (two.at - one.at)


def _differences(before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(0, two - one) for one, two in zip(before, after, strict=True))
