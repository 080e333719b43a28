"""Metrics of our own making."""

from __future__ import annotations

import datetime

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from listener.clock import elapsed
from listener.fcm.outcome import Disposition
from listener.metrics.counts import Counts
from listener.metrics.durations import Durations
from listener.metrics.own import Metrics
from listener.metrics.shared import Figures, Shared
from listener.sending.held import HeldRows
from tests.support.pushes import push

BUCKETS = (0.01, 0.5, 2.0)


@given(st.lists(st.sampled_from(BUCKETS) | st.floats(0.0, 10.0)))
def test_durations_are_told_as_the_library_tells_them(seconds: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    durations = Durations("waits", "How long.", buckets=BUCKETS, registry=ours)
    histogram = Histogram("waits", "How long.", buckets=BUCKETS, registry=theirs)
    for each in seconds:
        durations.observe(each)
        histogram.observe(each)
    told = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert generate_latest(ours).splitlines() == told


def test_counts_are_told_as_the_library_tells_them() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts = Counts("sends_total", "How many.", labels=("outcome", "code"), registry=ours)
    counter = Counter("sends_total", "How many.", ["outcome", "code"], registry=theirs)
    counts.begin("retry", "TIMEOUT")
    counter.labels("retry", "TIMEOUT")
    for code in ("OK", "NONE", "OK"):
        counts.add(Disposition.ACCEPTED, code)
        counter.labels(Disposition.ACCEPTED, code).inc()
    told = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert generate_latest(ours).splitlines() == told


DAY = datetime.date(2026, 1, 1)


def figures(delivered: int) -> Figures:
    return Figures(
        depth={}, due={}, oldest_due={}, scheduled=0, unwritable={}, workers=1, notify_queue=0.0, snapshot_age=0,
        clock_offset=0.0, receipts={DAY: (delivered, 0, 0)},
    )  # fmt: skip


def test_receipts_that_come_back_are_not_counted_again() -> None:
    """Delivered pushes are requeued by hand and sent again: each is delivered at once, without a new receipt."""
    shared = Shared(registry := CollectorRegistry())
    for delivered in (1000, 0, 1000):
        shared.show(figures(delivered))
    assert registry.get_sample_value("push_receipts_total", {"status": "delivered"}) == 0.0


def test_a_worker_that_begins_has_nothing_in_flight() -> None:
    """The one before may have been abandoned with what it held, when it lost its id."""
    metrics = Metrics()
    HeldRows(metrics, lease=60.0).add([push()], elapsed())
    HeldRows(metrics, lease=60.0)
    assert metrics.registry.get_sample_value("push_in_flight") == 0.0


def test_while_no_worker_runs_nothing_is_in_flight_and_nothing_waits_to_be_written() -> None:
    """Until the next one begins, which takes as long as the database is away."""
    metrics = Metrics()
    HeldRows(metrics, lease=60.0).add([push()], elapsed())
    metrics.settle_backlog.set_function(lambda: 3.0)
    metrics.progress.set_to_current_time()
    metrics.forget_worker()
    assert metrics.registry.get_sample_value("push_in_flight") == 0.0
    assert metrics.registry.get_sample_value("push_settle_backlog") == 0.0
    assert metrics.registry.get_sample_value("push_last_progress_timestamp_seconds") is None


def test_receipts_of_a_day_count_from_the_most_that_was_seen() -> None:
    shared = Shared(registry := CollectorRegistry())
    for delivered in (1000, 0, 1003, 500, 1004):
        shared.show(figures(delivered))
    assert registry.get_sample_value("push_receipts_total", {"status": "delivered"}) == 4.0
