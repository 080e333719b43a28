"""The metrics of one process, each defined once.

No label ever holds a user, a token or a payload; codes are a bounded vocabulary. What is counted here is to be summed
over all processes. See docs/metrics.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from listener import __version__, log
from listener.metrics import labels
from listener.metrics.counts import Counts
from listener.metrics.durations import Durations
from listener.metrics.shared import Shared

_LATENCY = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    1800.0,
    7200.0,
)
_EXCHANGE = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0)
_STATEMENT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _DroppedLines(Collector):
    """The lines that the log has dropped. The log counts them itself, in a thread and for the whole process."""

    def describe(self) -> Iterator[CounterMetricFamily]:
        return self.collect()

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(
            "push_log_lines_dropped",
            "Lines of the log that were dropped because nobody read standard error.",
            value=log.lines_dropped(),
        )


class Moment(Collector):
    """A point in time, in Unix seconds. It is absent until it is known."""

    def __init__(self, name: str, about: str, *, registry: CollectorRegistry | None) -> None:
        self._name, self._about = name, about
        self.at: float | None = None
        if registry is not None:
            registry.register(self)

    def set(self, at: float | None) -> None:
        """Sets the point in time; None: it is not known."""
        self.at = at

    def set_to_current_time(self) -> None:
        """Sets the point in time to now."""
        self.at = time.time()

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The name and the help, for the registry."""
        yield GaugeMetricFamily(self._name, self._about)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What Prometheus gets."""
        if self.at is not None:
            yield GaugeMetricFamily(self._name, self._about, self.at)


class Metrics:
    """The metrics of one process, in a registry of their own.

    Args:
        listens: False: the process never listens, so it has no metrics about LISTEN.
    """

    def __init__(self, *, listens: bool = True) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # nobody needs one more series for each counter
        registry = self.registry = CollectorRegistry()
        of_listening = registry if listens else None
        Info("push_build", "Version of push-listener.", registry=registry).info({"version": __version__})
        ProcessCollector(registry=registry)
        registry.register(_DroppedLines())

        # --- pushes ------------------------------------------------------------------------------------------

        self.claimed = Counter("push_claimed_total", "Pushes claimed by this process.", registry=registry)
        self.sends = Counts(
            "push_sends_total",
            "Requests that sent a push to one target, by what the answer meant (outcome), its error code, and the "
            "platform of the target.",
            labels=("outcome", "code", "platform"),
            registry=registry,
        )
        for outcome, codes in labels.SENDS.items():
            for code in codes:
                for target in labels.TARGETS:
                    self.sends.begin(outcome, code, target)
        self.settled = _counter(
            "push_settled_total",
            "Pushes settled by this process, by the status they were given.",
            "status", labels.STATUSES, registry,
        )  # fmt: skip
        self.dead = _counter(
            "push_dead_total",
            "Pushes given up by this process, by error code.",
            "code",
            labels.DEAD,
            registry,
        )
        self.retries = _counter(
            "push_retries_total",
            "Pushes put back for another try that counts, by the error code that caused it.",
            "code", labels.RETRIED, registry,
        )  # fmt: skip
        self.invalid = _counter(
            "push_invalid_total",
            "Pushes that cannot be sent as they are, and were refused before any request of this attempt, by "
            "error code.",
            "code", labels.INVALID, registry,
        )  # fmt: skip
        self.tokens_disabled = _counter(
            "push_tokens_disabled_total",
            "Registration tokens that FCM or Apple called dead, and that this process has had disabled, by error code.",
            "code", labels.DISABLED, registry,
        )  # fmt: skip
        self.fenced = _counter(
            "push_fenced_total",
            "Pushes whose result was not written because the row was not this worker's any more: another worker has "
            "taken it or put it back (changed), or the application has changed or deleted it.",
            "fate", ("taken", "changed", "deleted"), registry,
        )  # fmt: skip
        self.rescued = Counter(
            "push_rescued_total",
            "Pushes put back into the queue by this process after the worker that held them had died.",
            registry=registry,
        )
        self.purged = _counter(
            "push_purged_total",
            "Rows deleted by this process because they had ended longer ago than RETENTION, by table.",
            "table", ("push_notifications", "push_delivery_logs"), registry,
        )  # fmt: skip
        self.log_lines_lost = Counter(
            "push_log_rows_lost_total",
            "Rows for push_delivery_logs that the table did not take, and that this process does not keep any longer.",
            registry=registry,
        )
        self.in_flight = Gauge(
            "push_in_flight", "Pushes claimed by this process and not settled yet.", registry=registry
        )
        self.in_flight_limit = Gauge(
            "push_in_flight_limit", "MAX_IN_FLIGHT: the most requests to FCM at once.", registry=registry
        )
        self.settle_backlog = Gauge(
            "push_settle_backlog", "Results of this process that wait to be written.", registry=registry
        )

        self.whole_look = Gauge(
            "push_whole_look_seconds",
            "How long the last look over the whole range of due times took; a transaction with an old snapshot makes "
            "it slower.",
            registry=registry,
        )

        # --- time --------------------------------------------------------------------------------------------

        self.due_to_accepted = Durations(
            "push_due_to_accepted_seconds",
            "From the moment a push was due (its insert, or its scheduled time) until FCM accepted it for the first "
            "target, all tries included. Pushes that FCM never accepts do not count.",
            buckets=_LATENCY,
            registry=registry,
            label="priority",
            values=labels.PRIORITIES,
        )
        self.insert_to_send = Durations(
            "push_insert_to_send_seconds",
            "From the moment a push was due (its insert, or its scheduled time) to its first request to FCM.",
            buckets=_LATENCY,
            registry=registry,
            label="priority",
            values=labels.PRIORITIES,
        )
        self.exchange = Durations(
            "push_fcm_request_seconds",
            "Duration of one HTTP exchange with FCM, answered or not.",
            buckets=_EXCHANGE,
            registry=registry,
        )
        self.statement = Durations(
            "push_database_statement_seconds",
            "Duration of a claim, of writing a batch of results (settle), and of reading what the queue holds (read), "
            "if it succeeded.",
            buckets=_STATEMENT,
            registry=registry,
            label="statement",
            values=labels.STATEMENTS,
        )
        self.database_errors = _counter(
            "push_database_errors_total",
            "Statements that failed, by what they were for.",
            "statement", labels.FAILING_STATEMENTS, registry,
        )  # fmt: skip
        self.loop_lag = Gauge(
            "push_event_loop_lag_seconds",
            "Longest delay of the event loop in the last half minute.",
            registry=registry,
        )

        # --- when to look ------------------------------------------------------------------------------------

        self.listening = Gauge(
            "push_listening",
            "1 while LISTEN is in force; absent with WAKEUP=sweep.",
            registry=of_listening,
        )
        self.connections = Counter(
            "push_listen_connections_total",
            "Connections on which LISTEN came into force: the first one and each that replaced a lost one.",
            registry=of_listening,
        )
        self.notifications = Counter(
            "push_doorbell_notifications_total",
            "Notifications received from inserts and from other workers.",
            registry=of_listening,
        )
        self.last_notification = Moment(
            "push_last_notification_timestamp_seconds",
            "When the last notification came; absent before the first.",
            registry=of_listening,
        )
        self.last_look = Moment(
            "push_last_look_timestamp_seconds",
            "When this process last asked the queue for due rows and was answered; absent before the first time.",
            registry=registry,
        )
        self.progress = Moment(
            "push_last_progress_timestamp_seconds",
            "When this process last got anywhere: it decided what to claim, sent a request to FCM to its end, was "
            "answered or refused by the database, or tried to connect; absent while there is no worker. The watchdog "
            "ends a process that gets nowhere.",
            registry=registry,
        )
        self.busy_polling = Gauge(
            "push_busy_polling",
            "1 while this process polls the queue, so that inserts need not notify.",
            registry=of_listening,
        )
        self.busy_polling_started = Counter(
            "push_busy_polling_started_total",
            "How often this process has begun to poll.",
            registry=of_listening,
        )
        self.unnotified = Gauge(
            "push_unnotified_transactions",
            "Open transactions that inserted without notifying; the worker rechecks the queue until they end.",
            registry=of_listening,
        )

        # --- how much to send --------------------------------------------------------------------------------

        self.paused = Gauge(
            "push_paused",
            "1 while sending is paused: refused (FCM refuses the credentials or the project), away (FCM does not "
            "answer), token_loss (FCM calls nearly every token dead), no_access_token.",
            ["reason"],
            registry=registry,
        )
        for reason in labels.PAUSES:
            self.paused.labels(reason)
        self.platform_paused = Gauge(
            "push_platform_paused",
            "1 while only probes are sent to a platform, because Apple or the web push service takes nothing from FCM.",
            ["platform"],
            registry=registry,
        )
        for platform in labels.PLATFORMS:
            self.platform_paused.labels(platform)
        self.quota = Gauge(
            "push_quota_requests_per_second",
            "FCM_QUOTA in requests a second, for all processes together (aggregate with max).",
            registry=registry,
        )
        self.quota_share = Gauge(
            "push_quota_share_requests_per_second",
            "Requests a second that this process may send at most: its share of the quota, reduced after FCM has "
            "answered 429.",
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
        self.token_refreshes = _counter(
            "push_token_refreshes_total",
            "Access tokens for FCM that were asked for.",
            "result", ("ok", "failed"), registry,
        )  # fmt: skip
        self.token_expiry = Moment(
            "push_token_expiry_timestamp_seconds",
            "When the newest access token for FCM expires, or has expired; absent before the first.",
            registry=registry,
        )
        self.probes = _counter(
            "push_probes_total",
            "Messages that FCM was asked to validate only, by its answer: accepted, refused, or failed (no answer, or "
            "a fault of FCM's).",
            "outcome", ("accepted", "refused", "failed"), registry,
        )  # fmt: skip

        self.shared = Shared(registry)
        """Read from the database."""

    def forget_worker(self) -> None:
        """No worker runs: the rows that the last one has left behind belong to its peers."""
        self.progress.set(None)
        self.in_flight.set(0)
        self.settle_backlog.set_function(float)
        self.whole_look.set_function(float)


def _counter(
    name: str, about: str, label: str, values: tuple[str, ...], registry: CollectorRegistry
) -> Counter:
    """A counter whose known series begin with 0."""
    counter = Counter(name, about, [label], registry=registry)
    for value in values:
        counter.labels(value)
    return counter
