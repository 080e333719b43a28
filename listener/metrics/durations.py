"""Histograms of seconds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Durations(Collector):
    """A histogram of seconds for one event loop. It has no locks, and so costs a fifth of the library's histogram.

    Args:
        buckets: upper bounds in seconds, without infinity.
        label: the name of the one label, if there is one.
        values: all values of the label. Each is there from the start.
    """

    def __init__(
        self,
        name: str,
        about: str,
        *,
        buckets: Iterable[float],
        registry: CollectorRegistry,
        label: str | None = None,
        values: Iterable[str] = ("",),
    ) -> None:
        self._name, self._about = name, about
        self._labels = [] if label is None else [label]
        self.bounds = (*buckets, float("inf"))
        """Upper bounds of the buckets, in seconds."""
        self._counts = {value: [0] * len(self.bounds) for value in values}
        self._sums = dict.fromkeys(self._counts, 0.0)
        registry.register(self)

    def observe(self, seconds: float, value: str = "") -> None:
        """Counts one duration. ``value``: the value of the label. Raises KeyError if the histogram does not know it."""
        self._counts[value][bisect_left(self.bounds, seconds)] += 1
        self._sums[value] += seconds

    def counts(self) -> tuple[int, ...]:
        """What each bucket holds, over all values of the label."""
        return tuple(map(sum, zip(*self._counts.values(), strict=True)))

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """The name, the help and the label, for the registry."""
        yield HistogramMetricFamily(self._name, self._about, labels=self._labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What Prometheus gets."""
        family = HistogramMetricFamily(self._name, self._about, labels=self._labels)
        for value, counts in self._counts.items():
            up_to = zip(map(floatToGoString, self.bounds), accumulate(counts), strict=True)
            family.add_metric([value][: len(self._labels)], [*up_to], self._sums[value])
        yield family
