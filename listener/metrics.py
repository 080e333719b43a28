"""Every metric, defined once. No label ever holds a user, a token or a payload; codes are a bounded vocabulary."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from listener import __version__, log

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_EXCHANGE = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0)


class Durations(Collector):
    """A histogram of seconds for one event loop; without the library's locks it costs a fifth."""

    def __init__(
        self, name: str, about: str, *, buckets: Iterable[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._about = name, about
        self._bounds = [*buckets, float("inf")]
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        registry.register(self)

    def observe(self, seconds: float) -> None:
        """Counts one duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """What the registry knows it by."""
        yield HistogramMetricFamily(self._name, self._about)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What Prometheus gets."""
        up_to = zip(map(floatToGoString, self._bounds), accumulate(self._counts), strict=True)
        yield HistogramMetricFamily(self._name, self._about, [*up_to], self._sum)


class _DroppedLines(Collector):
    """What the log counts by itself, because it does so for the whole process and in a thread."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(
            "push_log_lines_dropped",
            "Lines of the log that were dropped because nobody read standard error.",
            value=log.lines_dropped(),
        )


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, which nobody asks for
        registry = self.registry = CollectorRegistry()
        Info("push_build", "Version of push-listener.", registry=registry).info({"version": __version__})

        self.sends = Counter(
            "push_sends_total",
            "Answers to sends, one for each attempt at each target, by outcome and error code.",
            ["outcome", "code"],
            registry=registry,
        )
        self.retries = Counter(
            "push_retries_total",
            "Pushes put back for another try, by the error code that caused it.",
            ["code"],
            registry=registry,
        )
        self.settled = Counter(
            "push_settled_total",
            "Pushes settled by this process, by the status they were given.",
            ["status"],
            registry=registry,
        )
        self.invalid = Counter(
            "push_invalid_total",
            "Pushes that cannot be sent as they are and never reached FCM, by error code.",
            ["code"],
            registry=registry,
        )
        self.fenced = Counter(
            "push_fenced_total",
            "Pushes whose result was not written because the row was not this worker's any more: another worker has "
            "taken it, or the application has changed or deleted it.",
            ["fate"],
            registry=registry,
        )
        self.log_lines_lost = Counter(
            "push_log_rows_lost_total",
            "Rows for push_delivery_logs that the table did not take, and that this process does not keep any longer.",
            registry=registry,
        )
        self.unwritable = Gauge(
            "push_unwritable_rows",
            "Pushes that are passed over because a trigger, an index or a constraint of the application refuses what "
            "push-listener writes, by what was to be written and the SQLSTATE (or IGNORED, CHANGED).",
            ["statement", "code"],
            registry=registry,
        )
        self.rescued = Counter(
            "push_rescued_total",
            "Pushes put back into the queue by this process after the worker that held them had died.",
            registry=registry,
        )
        self.claimed = Counter("push_claimed_total", "Pushes claimed by this process.", registry=registry)
        self.purged = Counter(
            "push_purged_total",
            "Rows deleted by this process because they had ended longer ago than RETENTION, by table.",
            ["table"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "push_in_flight", "Pushes claimed by this process and not settled yet.", registry=registry
        )
        self.insert_to_send = Durations(
            "push_insert_to_send_seconds",
            "From the moment a push was due (its insert, or its scheduled time) to its first request to FCM.",
            buckets=_LATENCY,
            registry=registry,
        )
        self.exchange = Durations(
            "push_fcm_request_seconds",
            "Duration of one HTTP exchange with FCM, answered or not.",
            buckets=_EXCHANGE,
            registry=registry,
        )
        self.notifications = Counter(
            "push_doorbell_notifications_total", "Notifications received.", registry=registry
        )
        self.listening = Gauge("push_listening", "1 while LISTEN is in force.", registry=registry)
        self.busy_polling = Gauge(
            "push_busy_polling",
            "1 while this process polls the queue, so that inserts need not notify.",
            registry=registry,
        )
        self.busy_polling_started = Counter(
            "push_busy_polling_started_total", "How often this process has begun to poll.", registry=registry
        )
        self.unnotified = Gauge(
            "push_unnotified_transactions",
            "Open transactions that inserted without notifying; the worker rechecks the queue until they end.",
            registry=registry,
        )
        self.lock_stranger = Gauge(
            "push_lock_stranger_pid",
            "Process id of a foreign session that holds an advisory lock of push-listener (0: a prepared transaction); "
            "absent while there is none.",
            ["lock", "role"],
            registry=registry,
        )
        self.paused = Gauge(
            "push_paused",
            "1 while sending is paused because FCM refuses our configuration, or is away.",
            registry=registry,
        )
        self.platform_paused = Gauge(
            "push_platform_paused",
            "1 while only probes are sent to a platform, because Apple or the web push service takes nothing from FCM.",
            ["platform"],
            registry=registry,
        )
        self.quota_rate = Gauge(
            "push_quota_rate",
            "Requests a second that this process may send to FCM now: its share of the quota, bounded by the ramp and "
            "by FCM's answers.",
            registry=registry,
        )
        self.quota_reduced = Counter(
            "push_quota_reduced_total",
            "How often this process reduced the rate of all workers because FCM answered 429.",
            registry=registry,
        )
        self.quota_waited = Counter(
            "push_quota_waited_seconds_total",
            "Seconds for which pushes of normal priority could not be claimed because of the quota.",
            registry=registry,
        )
        self.database_errors = Counter(
            "push_database_errors_total",
            "Statements that failed, by what they were for.",
            ["statement"],
            registry=registry,
        )

        registry.register(_DroppedLines())

        # Read from the database, the same from every instance: aggregate with max by (...), never with sum.
        self.depth = Gauge(
            "push_queue_depth",
            "Rows of push_notifications that wait, by status (every instance reports the same).",
            ["status"],
            registry=registry,
        )
        self.due = Gauge(
            "push_queue_due",
            "Rows of push_notifications whose next_attempt_at has come (every instance reports the same).",
            registry=registry,
        )
        self.oldest_due = Gauge(
            "push_queue_oldest_due_seconds",
            "Age of the oldest due row of push_notifications (every instance reports the same).",
            registry=registry,
        )
        self.notify_queue = Gauge(
            "push_notify_queue_usage",
            "Part of the server's NOTIFY queue in use, from 0 to 1; when it is full, transactions that notify fail "
            "(every instance reports the same).",
            registry=registry,
        )
        self.depth_age = Gauge(
            "push_queue_age_seconds", "Age of what the push_queue_* metrics show.", registry=registry
        )
        self._depth_read = time.monotonic()
        self.depth_age.set_function(lambda: time.monotonic() - self._depth_read)

    def show_depth(
        self,
        counts: dict[str, int],
        due: int,
        oldest_due: float,
        unwritable: Mapping[tuple[str, str], int] = MappingProxyType({}),
    ) -> None:
        """Shows what was just read from the database. ``unwritable``: rows by statement and code."""
        for status, count in counts.items():
            self.depth.labels(status).set(count)
        self.due.set(due)
        self.oldest_due.set(oldest_due)
        self.unwritable.clear()
        for labels, rows in unwritable.items():
            self.unwritable.labels(*labels).set(rows)
        self._depth_read = time.monotonic()
