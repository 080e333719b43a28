"""Metrics that every process reads from the database, and that are absent while they cannot be read."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

STALE_AFTER_S = 300.0
"""Seconds for which a reading is shown. After that the alerts leave it out too (rules/shared.yml), and call a person if
there is no newer reading. So the time between two readings is always shorter."""

_RECEIPTS = ("delivered", "opened", "clicked")


@dataclass(frozen=True, slots=True)
class Results:
    """How the pushes of some days ended."""

    pushes: Mapping[str, int]
    """By result: sent, dead, expired, cancelled, waiting."""
    delivered: int
    """Of the sent ones."""
    delivery_seconds: float | None
    """Mean seconds from insert to the first receipt; None: there is none."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What was read at one moment."""

    depth: Mapping[tuple[str, str], int]
    """Pushes that wait, by status and priority."""
    due: Mapping[str, int]
    oldest_due: Mapping[str, float]
    scheduled: int
    unwritable: Mapping[tuple[str, str], int]
    """By statement and code."""
    workers: int | None
    """None: Postgres does not see them."""
    notify_queue: float
    snapshot_age: int | None
    """None: the role does not see the sessions of others."""
    clock_offset: float
    results: Mapping[int, Results] = field(default_factory=dict)
    """By number of days."""
    receipts: Mapping[datetime.date, Sequence[int]] = field(default_factory=dict)
    """Of the last days: how many receipts say delivered, opened and clicked."""
    sent: int = 0
    """Pushes that FCM accepted today and yesterday (UTC). Not a metric: the page shows by how much it grows."""
    failed: Mapping[str, int] = field(default_factory=dict)
    """Pushes that ended dead or expired today and yesterday, by error code; likewise."""


class Shared(Collector):
    """Shows the last reading. After a failed read it shows only the time of the last success."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._figures: Figures | None = None
        self._strangers: Mapping[tuple[str, str], int] = {}
        self._read_at = 0.0  # Unix time
        self._fresh_until = 0.0  # monotonic
        self._most: Mapping[datetime.date, Sequence[int]] | None = None  # highest sums of a day, by kind
        self._receipts = dict.fromkeys(_RECEIPTS, 0)
        self._subscribers: list[Callable[[Figures | None], None]] = []
        registry.register(self)

    def subscribe(self, function: Callable[[Figures | None], None]) -> None:
        """Calls ``function`` with every reading from now on, and with None after one that failed."""
        self._subscribers.append(function)

    @property
    def figures(self) -> Figures | None:
        """The last reading, while it is shown."""
        return self._figures if time.monotonic() < self._fresh_until else None

    @property
    def age(self) -> float | None:
        """Seconds since ``figures`` were read; None: there are none."""
        return None if self.figures is None else STALE_AFTER_S - (self._fresh_until - time.monotonic())

    def show(self, figures: Figures) -> None:
        """Shows these figures from now on."""
        self._figures = figures
        self._read_at, self._fresh_until = time.time(), time.monotonic() + STALE_AFTER_S
        self._count_receipts(figures.receipts)
        for function in self._subscribers:
            function(figures)

    def show_strangers(self, sessions: Mapping[tuple[str, str], int]) -> None:
        """Shows from now on how many foreign sessions hold a lock, by lock and role. A sweep reads them."""
        self._strangers = sessions

    def forget(self) -> None:
        """Shows nothing until the next ``show``: the last reading may no longer be true."""
        self._figures, self._strangers = None, {}
        for function in self._subscribers:
            function(None)

    def _count_receipts(self, days: Mapping[datetime.date, Sequence[int]]) -> None:
        """Adds the receipts by which the sums of a day exceed their highest value so far.

        The sums of the database fall when a push is sent again, and then rise again without new receipts. A counter
        must do neither.
        """
        most: dict[datetime.date, Sequence[int]] = {}
        for day, counts in days.items():
            before = (self._most or {}).get(day, (0,) * len(_RECEIPTS))
            most[day] = [max(pair) for pair in zip(counts, before, strict=True)]
            if self._most is not None:
                for status, now, known in zip(_RECEIPTS, most[day], before, strict=True):
                    self._receipts[status] += now - known
        self._most = most

    def describe(self) -> Iterator[Metric]:
        """The names and the help, for the registry."""
        yield from _families().values()

    def collect(self) -> Iterator[Metric]:
        """What Prometheus gets."""
        families = _families()
        if self._read_at:
            families["read"].add_metric([], self._read_at)
        for holder, sessions in self._strangers.items():
            families["strangers"].add_metric(holder, sessions)
        figures = self.figures
        if figures is not None:
            _fill(families, figures)
            for status, count in self._receipts.items():
                families["receipts"].add_metric([status], count)
        for family in families.values():
            if family.samples:
                yield family


def _families() -> dict[str, GaugeMetricFamily | CounterMetricFamily]:
    same = " (every instance reports the same: aggregate with max)"

    def gauge(name: str, about: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, about + same, labels=labels)

    return {
        "read": GaugeMetricFamily(
            "push_queue_read_timestamp_seconds",
            "When this process last read the metrics that every instance reports alike. They are absent after a read "
            "that failed.",
        ),
        "depth": gauge(
            "push_queue_depth",
            "Pushes that have not ended, those scheduled and those that a worker holds included",
            "status", "priority",
        ),
        "due": gauge(
            "push_queue_due",
            "Pushes whose time has come. Pushes that the application keeps from being written do not count",
            "priority",
        ),
        "scheduled": gauge("push_queue_scheduled", "New pushes and retries whose time has not come"),
        "oldest": gauge(
            "push_queue_oldest_due_seconds",
            "For how long the push that has waited longest has been due, counted from before its first try, also while "
            "it waits for the next one; 0 while there is none. Pushes that the application keeps from being written do "
            "not count",
            "priority",
        ),
        "unwritable": gauge(
            "push_unwritable_rows",
            "Pushes that are passed over because a trigger, an index or a constraint of the application refuses what "
            "push-listener writes, by what was to be written and the SQLSTATE (or IGNORED, CHANGED, UNLOGGED)",
            "statement", "code",
        ),
        "workers": gauge("push_workers_alive", "Workers that Postgres sees; absent with WAKEUP=sweep"),
        "strangers": gauge(
            "push_lock_strangers",
            "Foreign sessions that hold an advisory lock of push-listener, by lock and role; absent while there is "
            "none",
            "lock", "role",
        ),
        "notify_queue": gauge(
            "push_notify_queue_usage",
            "Part of the server's NOTIFY queue in use, from 0 to 1; when it is full, transactions that notify fail",
        ),
        "snapshot": gauge(
            "push_oldest_snapshot_age_transactions",
            "Transactions since the oldest snapshot that a session, a prepared transaction or a replication slot "
            "holds; vacuum removes nothing that became dead since. Absent for a role that may not see the sessions of "
            "others (pg_read_all_stats)",
        ),
        "clock": GaugeMetricFamily(
            "push_clock_offset_seconds", "How far the clock of the database is ahead of the clock of this machine."
        ),
        "results": gauge(
            "push_stats_pushes",
            "How the pushes of the last days ended, in UTC and today included, and those that wait now: sent (accepted "
            "by FCM), dead, expired, cancelled, waiting",
            "days", "result",
        ),
        "delivered": gauge(
            "push_stats_delivered_pushes", "The sent pushes of the last days that a device has reported", "days"
        ),
        "delivery": gauge(
            "push_stats_delivery_seconds",
            "Mean time from insert to the first receipt of the last days' pushes; absent while there is no receipt",
            "days",
        ),
        "receipts": CounterMetricFamily(
            "push_receipts",
            "Receipts that reached the database since this process first read it (every instance reports the same "
            "rate: aggregate with max by (status) (rate()))",
            labels=["status"],
        ),
    }  # fmt: skip


def _fill(families: Mapping[str, GaugeMetricFamily | CounterMetricFamily], figures: Figures) -> None:
    for (status, priority), pushes in figures.depth.items():
        families["depth"].add_metric([status, priority], pushes)
    for priority, pushes in figures.due.items():
        families["due"].add_metric([priority], pushes)
    for priority, seconds in figures.oldest_due.items():
        families["oldest"].add_metric([priority], seconds)
    for (statement, code), pushes in figures.unwritable.items():
        families["unwritable"].add_metric([statement, code], pushes)
    families["scheduled"].add_metric([], figures.scheduled)
    if figures.workers is not None:
        families["workers"].add_metric([], figures.workers)
    families["notify_queue"].add_metric([], figures.notify_queue)
    if figures.snapshot_age is not None:
        families["snapshot"].add_metric([], figures.snapshot_age)
    families["clock"].add_metric([], figures.clock_offset)
    for days, results in figures.results.items():
        for result, pushes in results.pushes.items():
            families["results"].add_metric([str(days), result], pushes)
        families["delivered"].add_metric([str(days)], results.delivered)
        if results.delivery_seconds is not None:
            families["delivery"].add_metric([str(days)], results.delivery_seconds)
