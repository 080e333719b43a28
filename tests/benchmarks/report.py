"""Figures and how they are shown: quantiles, goals, the table, the JSON. Nothing here measures anything."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rich.table import Table
from rich.text import Text


class Depends(StrEnum):
    """What of the machine a figure depends on."""

    NOTHING = ""
    """A ratio within one run, a count, or a time that a timer sets: it holds on any machine."""
    CPU = "CPU"
    """The speed of its cores."""
    COMMIT = "commit"
    """The time of a commit, and so the disk."""


class Of(StrEnum):
    """What is made of the samples of several runs."""

    MEDIAN = "median"
    WORST = "worst"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure must reach: at most, or at least, a bound."""

    bound: float
    at_most: bool

    def met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound


def at_most(bound: float) -> Goal:
    return Goal(bound, at_most=True)


def at_least(bound: float) -> Goal:
    return Goal(bound, at_most=False)


@dataclass(frozen=True, slots=True)
class Line:
    """One figure: the samples taken of it here, and of the peers in the same run.

    ``form`` is how a value is written, as in ``form.format(value)``. A peer that had no figure to give has a text
    that says why. Where there is no goal, ``more_is_better`` tells which of two figures is the better one.
    """

    what: str
    form: str
    here: Sequence[float]
    goal: Goal | None = None
    peers: Mapping[str, Sequence[float] | str] = field(default_factory=dict)
    of: Of = Of.MEDIAN
    depends: Depends = Depends.NOTHING
    more_is_better: bool = False

    @property
    def gains_by_more(self) -> bool:
        """Whether a larger figure is the better one."""
        return self.more_is_better if self.goal is None else not self.goal.at_most

    @property
    def value(self) -> float:
        return self._of(self.here)

    @property
    def met(self) -> bool | None:
        """None: there is no goal."""
        return None if self.goal is None else self.goal.met(self.value)

    def peer(self, name: str) -> float | None:
        """A peer's figure, if it has one."""
        samples = self.peers[name]
        return None if isinstance(samples, str) else self._of(samples)

    def _of(self, samples: Sequence[float]) -> float:
        if self.of is Of.MEDIAN:
            return statistics.median(samples)
        return max(samples) if self.goal is None or self.goal.at_most else min(samples)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        goal = self.goal and {"at_most" if self.goal.at_most else "at_least": self.goal.bound}
        peers: dict[str, Any] = {
            name: {"missing": samples} if isinstance(samples, str) else _figure(samples, self.peer(name))
            for name, samples in self.peers.items()
        }
        here = {**_figure(self.here, self.value), "of": self.of.value}
        return {
            "what": self.what,
            "goal": goal,
            "here": here,
            "peers": peers,
            "met": self.met,
            "depends": self.depends.value,
            "more_is_better": self.gains_by_more,
        }


def _figure(samples: Sequence[float], value: float | None) -> dict[str, Any]:
    return {"value": value, "samples": list(samples)}


@dataclass(frozen=True, slots=True)
class Fraction:
    """What one part of the benchmark has found, or why it has found nothing."""

    name: str
    seconds: float
    load: float
    """Load average over a minute, before it began."""
    lines: Sequence[Line] = ()
    failure: str | None = None
    calibration: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """What a fixed piece of work took before it began; see ``calibration.py``."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "seconds": self.seconds,
            "load_before": self.load,
            "failure": self.failure,
            "calibration": {name: list(samples) for name, samples in self.calibration.items()},
            "lines": [line.as_dict() for line in self.lines],
        }


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def ratios(these: Sequence[float], those: Sequence[float]) -> list[float]:
    """Run by run: what is measured side by side is compared side by side."""
    return [this / that for this, that in zip(these, those, strict=True)]


def best(peers: Mapping[str, Sequence[float] | str], *, most: bool) -> float | None:
    """The best of the peers' medians."""
    medians = [statistics.median(one) for one in peers.values() if not isinstance(one, str)]
    return (max(medians) if most else min(medians)) if medians else None


def table(parts: Sequence[Fraction], title: str) -> Table:
    """All of it, for people."""
    head, *rows = _rows(parts)
    made = Table(*head, title=title, title_justify="left", pad_edge=False)
    for column in made.columns[1:]:
        column.justify = "right"
    colours = {"yes": "green", "NO": "red", "failed": "red"}
    for row in rows:
        if not row:
            made.add_section()
        else:
            made.add_row(*(Text(cell, colours.get(cell, "")) for cell in row))
    return made


def markdown(parts: Sequence[Fraction]) -> str:
    """The same, for a document."""
    head, *rows = (row for row in _rows(parts) if row)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rows(parts: Sequence[Fraction]) -> list[list[str]]:
    """The head, then each line; an empty list between two parts."""
    names = list(dict.fromkeys(name for part in parts for line in part.lines for name in line.peers))
    rows = [["", "goal", "here", *names, "met", "depends on"]]
    for part in parts:
        if len(rows) > 1:
            rows.append([])
        rows += [_cells(line, names) for line in part.lines]
        if part.failure is not None:
            rows.append([part.name, "", "failed", *("" for _ in names), "NO", ""])
    return rows


def _cells(line: Line, names: Sequence[str]) -> list[str]:
    def written(value: float) -> str:
        return line.form.format(value)

    def peer(name: str) -> str:
        samples = line.peers.get(name, "")
        return samples if isinstance(samples, str) else written(line.peer(name) or 0.0)

    goal = "" if line.goal is None else f"{'≤' if line.goal.at_most else '≥'} {written(line.goal.bound)}"
    here = written(line.value)
    if len(line.here) > 1:
        here += f" ({written(min(line.here))} to {written(max(line.here))})"
    met = {True: "yes", False: "NO", None: ""}[line.met]
    return [line.what, goal, here, *map(peer, names), met, line.depends]
