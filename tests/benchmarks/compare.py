"""Two runs of the benchmark beside each other: what has become worse. Pure; works on what ``--json`` writes.

A figure that depends on the machine is scaled by what the calibration of its part took in both runs, so that a machine
that was slower for a while does not count as a slower program. What is called worse or better differs by more than 3%,
and no run of the one side reaches what a run of the other came to.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from tests.benchmarks.calibration import SCALES
from tests.benchmarks.report import Depends, quantile

_TOLERATED = 1.03
_MACHINE = ("processor", "cores", "memory_gb", "system", "python", "postgres", "libraries", "peers")

Json = Mapping[str, Any]


class NotComparable(Exception):
    """The message says why."""


@dataclass(frozen=True, slots=True)
class Factor:
    """By what a figure of the old run is multiplied, and between what that may lie."""

    value: float = 1.0
    least: float = 1.0
    most: float = 1.0


@dataclass(frozen=True, slots=True)
class Compared:
    """One line in both runs."""

    what: str
    old: Sequence[float]
    """The figure, scaled, and the least and the most of the runs."""
    new: Sequence[float]
    ratio: float
    """New to old."""
    verdict: str
    """"worse", "better", or nothing."""
    depends: str
    has_spread: bool
    """Whether both sides were measured more than once."""


def check(old: Any, options: Json) -> None:
    """Raises NotComparable when ``old`` is nothing that a run with these options has written."""
    match old:
        case {"parts": [*parts], "options": {}, "machine": {}}:
            pass
        case _:
            raise NotComparable("it is no run of this benchmark")
    if not all("calibration" in part for part in parts):
        raise NotComparable("it has no calibration: an older version of the benchmark has written it")
    then: Json = old["options"]
    differ = [name for name in {**then, **options} if then.get(name) != options.get(name)]
    if differ:
        raise NotComparable(
            "the options differ: "
            + "; ".join(f"{name} was {then.get(name)} and is {options.get(name)}" for name in differ)
        )


def differences(old: Json, new: Json) -> list[str]:
    """In what the machines differ."""
    return [
        f"{name}: {old.get(name)} then, {new.get(name)} now"
        for name in _MACHINE
        if old.get(name) != new.get(name)
    ]


def compare(old: Json, new: Json) -> list[Compared]:
    """Each line that both runs have."""
    found = []
    for one, other in _pairs(old["parts"], new["parts"], "name"):
        for line, now in _pairs(one["lines"], other["lines"], "what"):
            found.append(_compared(line, now, _factor(now, one["calibration"], other["calibration"])))
    return found


def missing(old: Json, new: Json) -> list[str]:
    """Lines that one run has and the other has not, of parts that both have."""
    found = []
    for one, other in _pairs(old["parts"], new["parts"], "name"):
        then, now = ({line["what"] for line in part["lines"]} for part in (one, other))
        found += [f"{what}: only then" for what in sorted(then - now)]
        found += [f"{what}: only now" for what in sorted(now - then)]
    return found


def _pairs(old: Sequence[Json], new: Sequence[Json], key: str) -> Iterator[tuple[Json, Json]]:
    by_key = {one[key]: one for one in old}
    return ((by_key[one[key]], one) for one in new if one[key] in by_key)


def _factor(line: Json, old: Mapping[str, Sequence[float]], new: Mapping[str, Sequence[float]]) -> Factor:
    scale = SCALES.get(Depends(line["depends"]))
    if scale is None:
        return Factor()
    then, now = old[scale], new[scale]
    factor = Factor(
        statistics.median(now) / statistics.median(then),
        quantile(now, 0.25) / quantile(then, 0.75),
        quantile(now, 0.75) / quantile(then, 0.25),
    )
    # What is more when the machine is faster is a rate.
    return Factor(1 / factor.value, 1 / factor.most, 1 / factor.least) if line["more_is_better"] else factor


def _compared(old: Json, new: Json, factor: Factor) -> Compared:
    then, now = old["here"]["samples"], new["here"]["samples"]
    value, scaled = new["here"]["value"], old["here"]["value"] * factor.value
    ratio = value / scaled if scaled else (1.0 if value == scaled else float("inf"))
    verdict = ""
    if ratio > _TOLERATED and min(now) > max(then) * factor.most:
        verdict = "better" if new["more_is_better"] else "worse"
    elif ratio < 1 / _TOLERATED and max(now) < min(then) * factor.least:
        verdict = "worse" if new["more_is_better"] else "better"
    return Compared(
        new["what"],
        (scaled, min(then) * factor.value, max(then) * factor.value),
        (value, min(now), max(now)),
        ratio,
        verdict,
        new["depends"],
        has_spread=min(len(then), len(now)) > 1,
    )


def table(lines: Sequence[Compared], title: str) -> Table:
    """All of it, for people."""
    made = Table(
        "", "then", "now", "ratio", "", "scaled by", title=title, title_justify="left", pad_edge=False
    )
    for column in made.columns[1:4]:
        column.justify = "right"
    colours = {"worse": "red", "better": "green", "": ""}
    for line in lines:
        verdict = line.verdict if line.has_spread or not line.verdict else f"{line.verdict}? (one run)"
        then, now = (_written(side, line.has_spread) for side in (line.old, line.new))
        made.add_row(
            line.what, then, now, f"{line.ratio:.2f}", Text(verdict, colours[line.verdict]), line.depends
        )
    return made


def _written(side: Sequence[float], has_spread: bool) -> str:
    value, least, most = (f"{each:,.0f}" if abs(each) >= 1000 else f"{each:.3g}" for each in side)
    return f"{value} ({least} to {most})" if has_spread else value
