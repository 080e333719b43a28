"""Metrics of our own making."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from listener.metrics.durations import Durations

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
