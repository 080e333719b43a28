"""The names of all metrics that a process exports, as the code defines them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase

from listener.metrics.durations import Durations
from listener.metrics.own import Metrics, Moment
from listener.metrics.shared import Shared

_SERIES = {"counter": ("_total",), "info": ("_info",), "histogram": ("_bucket", "_count", "_sum")}
"""What Prometheus adds to the name of a family, by its type."""


def families() -> set[str]:
    """Every metric; a histogram once, without the endings of its series."""
    return {name if kind == "histogram" else name + _SERIES.get(kind, ("",))[0] for name, kind in _kinds()}


def series() -> set[str]:
    """Every name that a query may use."""
    return {name + ending for name, kind in _kinds() for ending in _SERIES.get(kind, ("",))}


def label_values() -> dict[tuple[str, str], set[str]]:
    """The values that a label has from the start, by the name of the series and the label."""
    found = dict[tuple[str, str], set[str]]()
    for metric in Metrics().registry.collect():
        for sample in metric.samples:
            for label, value in sample.labels.items():
                found.setdefault((sample.name, label), set()).add(value)
    return found


@cache
def _kinds() -> frozenset[tuple[str, str]]:
    """Name and type of each family."""
    return frozenset((metric.name, metric.type) for metric in _metrics())


def _metrics() -> Iterator[Metric]:
    metrics = Metrics()
    yield from metrics.registry.collect()
    # What nothing is known of yet is collected by none, but described.
    for defined in vars(metrics).values():
        if isinstance(defined, MetricWrapperBase | Durations | Moment | Shared):
            yield from defined.describe()
