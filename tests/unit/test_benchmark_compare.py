"""Two runs of the benchmark beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.benchmarks.calibration import CPU_MS, SCALES
from tests.benchmarks.compare import NotComparable, check, compare, differences, missing, table
from tests.benchmarks.report import Depends, Fraction, Goal, Line, at_least, at_most

OPTIONS = {"runs": 3, "quick": False, "settings": {}}


def run(
    samples: Sequence[float],
    *,
    cpu: Sequence[float] = (10.0, 10.0, 10.0),
    goal: Goal | None = None,
    depends: Depends = Depends.NOTHING,
    more: bool = False,
    what: str = "a figure",
) -> dict[str, Any]:
    """What a run with one line has written."""
    line = Line(what, "{:.2f}", samples, goal, depends=depends, more_is_better=more)
    part = Fraction("drain", 1.0, 0.5, [line], calibration={CPU_MS: cpu})
    return {"machine": {"cores": 2}, "options": OPTIONS, "parts": [part.as_dict()]}


def verdict(old: dict[str, Any], new: dict[str, Any]) -> tuple[float, str]:
    (line,) = compare(old, new)
    return round(line.ratio, 3), line.verdict


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], (1.273, "worse")),
        ([1.0, 1.1, 1.3], [1.2, 1.4, 1.5], (1.273, "")),  # a run of the one is within the other's
        ([1.0, 1.0, 1.0], [1.02, 1.02, 1.02], (1.02, "")),
        ([1.3, 1.4, 1.5], [1.0, 1.1, 1.2], (0.786, "better")),
        ([0.0], [0.0], (1.0, "")),
        ([0.0], [1.0], (float("inf"), "worse")),
    ],
)
def test_what_differs_by_more_than_the_spread_is_named(
    old: Sequence[float], new: Sequence[float], found: tuple[float, str]
) -> None:
    assert verdict(run(old), run(new)) == found


@pytest.mark.parametrize(
    ("goal", "more", "named"),
    [
        (at_least(1), False, "better"),
        (at_most(1), True, "worse"),
        (None, True, "better"),
        (None, False, "worse"),
    ],
)
def test_which_of_two_figures_is_the_better_one(goal: Goal | None, more: bool, named: str) -> None:
    old, new = (run([figure], goal=goal, more=more) for figure in (1.0, 2.0))
    assert verdict(old, new) == (2.0, named)


def test_a_slower_machine_is_no_slower_program() -> None:
    slow = [20.0, 20.0, 20.0]
    assert verdict(run([5.0], depends=Depends.CPU), run([10.0], cpu=slow, depends=Depends.CPU)) == (1.0, "")
    rates = (
        run([100.0], depends=Depends.CPU, more=True),
        run([50.0], cpu=slow, depends=Depends.CPU, more=True),
    )
    assert verdict(*rates) == (1.0, "")
    assert verdict(run([5.0]), run([10.0], cpu=slow)) == (2.0, "worse")  # a ratio holds anywhere


def test_what_the_calibration_differed_by_within_a_run_is_part_of_the_spread() -> None:
    unsteady = run([11.5], cpu=[8.0, 8.0, 10.0, 12.0, 12.0], depends=Depends.CPU)
    assert verdict(run([10.0], depends=Depends.CPU), unsteady) == (1.15, "")
    steady = run([11.5], depends=Depends.CPU)
    assert verdict(run([10.0], depends=Depends.CPU), steady) == (1.15, "worse")


def test_every_dependence_has_its_scale() -> None:
    assert set(SCALES) == set(Depends) - {Depends.NOTHING}


def test_another_kind_of_run_is_refused() -> None:
    check(run([1.0]), OPTIONS)
    with pytest.raises(NotComparable, match="quick was False and is True"):
        check(run([1.0]), {**OPTIONS, "quick": True})
    without: dict[str, Any] = {"machine": {}, "options": OPTIONS, "parts": [{"name": "drain", "lines": []}]}
    with pytest.raises(NotComparable, match="no calibration"):
        check(without, OPTIONS)


@pytest.mark.parametrize("old", [[], {}, {"parts": 1}, {"parts": [], "options": {}}])
def test_what_no_run_has_written_is_refused(old: Any) -> None:
    with pytest.raises(NotComparable, match="no run of this benchmark"):
        check(old, OPTIONS)


def test_other_machines_and_lines_that_only_one_run_has_are_told() -> None:
    old, new = run([1.0], what="one"), run([1.0], what="other")
    new["machine"] = {"cores": 4}
    assert differences(old["machine"], new["machine"]) == ["cores: 2 then, 4 now"]
    assert missing(old, new) == ["one: only then", "other: only now"]
    assert compare(old, new) == []


def test_a_verdict_of_single_runs_is_doubted() -> None:
    several = compare(run([1.0, 1.2], what="several"), run([1500.0, 2000.0], what="several"))
    single = compare(run([1.0], what="single"), run([2.0], what="single"))
    then, now, verdicts = (
        [str(cell) for cell in table([*several, *single], "a title").columns[number].cells]
        for number in (1, 2, 4)
    )
    assert then == ["1.1 (1 to 1.2)", "1"]
    assert now == ["1,750 (1,500 to 2,000)", "2"]
    assert verdicts == ["worse", "worse? (one run)"]
