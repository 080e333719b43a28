"""The figures of a benchmark: what is made of the samples, and what is shown of them."""

from __future__ import annotations

import resource
import statistics
from dataclasses import replace
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.benchmarks import broadcast, queues, rig
from tests.benchmarks.backlog import waits_ms
from tests.benchmarks.broadcast import Arm, broadcast_lines
from tests.benchmarks.drain import allowed_per_s, drain_lines
from tests.benchmarks.latency import AtRate, idle_lines, rate_lines, stamp_us
from tests.benchmarks.report import (
    Depends,
    Fraction,
    Goal,
    Line,
    Of,
    at_least,
    at_most,
    best,
    markdown,
    quantile,
    ratios,
    table,
)

samples = st.lists(st.floats(0.001, 1e9), min_size=1, max_size=50)

RATE = Line(
    "pushes a second",
    "{:,.0f}/s",
    [9_000.0, 12_000.0, 11_000.0],
    at_least(10_000),
    {"other": [2_500.0]},
    depends=Depends.CPU,
)


def shown(*parts: Fraction) -> str:
    """The table as a wide terminal has it."""
    console = Console(file=StringIO(), width=200, color_system=None)
    console.print(table(parts, "a title"))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@given(samples, st.floats(0.01, 1.0))
def test_a_quantile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


@given(samples)
def test_the_middle_is_between_the_halves(values: list[float]) -> None:
    assert quantile(values, 0.5) == statistics.median_low(values)


@pytest.mark.parametrize(
    ("goal", "of", "value", "met"),
    [
        (at_least(10_000), Of.MEDIAN, 11_000, True),
        (at_least(11_001), Of.MEDIAN, 11_000, False),
        (at_least(9_500), Of.WORST, 9_000, False),
        (at_most(11_500), Of.WORST, 12_000, False),
        (at_most(12_000), Of.WORST, 12_000, True),
        (None, Of.MEDIAN, 11_000, None),
    ],
)
def test_a_goal_is_met_by_the_median_or_by_the_worst_of_the_runs(
    goal: Goal | None, of: Of, value: float, met: bool | None
) -> None:
    line = replace(RATE, goal=goal, of=of)
    assert (line.value, line.met) == (value, met)


def test_what_is_measured_side_by_side_is_compared_side_by_side() -> None:
    assert ratios([1.0, 9.0], [2.0, 3.0]) == [0.5, 3.0]
    with pytest.raises(ValueError, match="longer"):
        ratios([1.0], [2.0, 3.0])


def test_the_best_of_the_peers_is_among_those_that_have_a_figure() -> None:
    peers: dict[str, list[float] | str] = {"a": [1.0, 2.0, 9.0], "b": [3.0], "c": "falls behind"}
    assert best(peers, most=True) == 3.0
    assert best(peers, most=False) == 2.0
    assert best({"c": "falls behind"}, most=True) is None


def test_the_table_has_each_line_with_its_goal_and_its_peers() -> None:
    slow = Line("latency", "{:.1f} ms", [7.25], at_most(5), {"other": "falls behind"})
    free = Line("free", "{:.2f}", [1.0])
    rows = shown(Fraction("drain", 1.0, 0.5, [RATE, slow, free])).splitlines()
    (rate,) = (row for row in rows if "pushes a second" in row)
    assert "≥ 10,000/s" in rate
    assert "11,000/s (9,000/s to 12,000/s)" in rate
    assert " 2,500/s │" in rate
    assert "yes" in rate
    (latency,) = (row for row in rows if "latency" in row)
    assert "≤ 5.0 ms" in latency
    assert "falls behind" in latency
    assert "NO" in latency
    (unmeasured,) = (row for row in rows if "free" in row)
    assert "yes" not in unmeasured
    assert "NO" not in unmeasured


def test_markdown_has_the_same_cells() -> None:
    lines = markdown(
        [Fraction("drain", 1.0, 0.5, [RATE]), Fraction("idle", 1.0, 0.5, failure="no")]
    ).splitlines()
    assert lines[0] == "|  | goal | here | other | met | depends on |"
    assert (
        lines[2] == "| pushes a second | ≥ 10,000/s | 11,000/s (9,000/s to 12,000/s) | 2,500/s | yes | CPU |"
    )
    assert lines[3] == "| idle |  | failed |  | NO |  |"


def test_markdown_keeps_the_names_of_rows() -> None:
    (row,) = markdown([Fraction("x", 1.0, 0.5, [Line("free", "{:.2f}", [1.0])])]).splitlines()[2:]
    assert row == "| free |  | 1.00 |  |  |"


def test_a_part_that_failed_is_shown_beside_those_that_did_not() -> None:
    text = shown(Fraction("drain", 1.0, 0.5, failure="no Postgres"), Fraction("idle", 1.0, 0.5, [RATE]))
    assert "failed" in text
    assert "pushes a second" in text


def test_json_has_every_sample() -> None:
    missing = replace(RATE, peers={"other": "falls behind"})
    found = Fraction("drain", 2.0, 0.5, [RATE, missing]).as_dict()
    assert found["failure"] is None
    assert found["lines"][0] == {
        "what": "pushes a second",
        "goal": {"at_least": 10_000},
        "here": {"value": 11_000.0, "samples": [9_000.0, 12_000.0, 11_000.0], "of": "median"},
        "peers": {"other": {"value": 2_500.0, "samples": [2_500.0]}},
        "met": True,
        "depends": "CPU",
        "more_is_better": True,
    }
    assert found["lines"][1]["peers"] == {"other": {"missing": "falls behind"}}


def test_only_ids_that_tell_when_they_were_made_do() -> None:
    assert stamp_us("00060a1b-2c3d-4e5f-0123-4567be9cbe9c") == 0x00060A1B2C3D4E5F
    assert stamp_us("b7c4c2de-6f64-4d3a-9d0c-0a6c1a1a2b3c") is None


def test_every_high_priority_push_counts_once_from_its_stamp() -> None:
    one, two = (f"00060a1b-2c3d-4e5f-0000-{n:04d}be9cbe9c" for n in range(2))
    made_ns = 0x00060A1B2C3D4E5F * 1000
    arrivals = [
        rig.Arrival(made_ns + 2_000_000, one),
        rig.Arrival(made_ns + 3_000_000, "b7c4c2de-6f64-4d3a-9d0c-0a6c1a1a2b3c"),
        rig.Arrival(made_ns + 5_000_000, two),
        rig.Arrival(made_ns + 9_000_000, one),
    ]
    assert sorted(waits_ms(arrivals, {one, two})) == pytest.approx([2.0, 5.0], abs=0.1)
    with pytest.raises(rig.BenchmarkFailed, match="1 of 2 high-priority pushes came"):
        waits_ms(arrivals[:1], {one, two})
    with pytest.raises(rig.BenchmarkFailed, match="0 of 0"):
        waits_ms(arrivals, set())


def test_a_run_that_fell_behind_is_a_goal_missed_beside_the_figures_of_the_others() -> None:
    kept = AtRate(190.0, [1.0, 2.0, 3.0])
    behind, *figures = rate_lines(200, "", {queues.LISTENER: [kept, None], "other": [None]})
    assert (behind.here, behind.met, behind.peers) == ([1.0], False, {"other": [1.0]})
    assert [(line.here, line.peers) for line in figures] == [
        ([2.0], {"other": "falls behind"}),
        ([3.0], {"other": "falls behind"}),
        ([190.0], {"other": "falls behind"}),
    ]
    assert [line.met for line in rate_lines(200, "", {queues.LISTENER: [None]})] == [False]
    assert len(rate_lines(200, "", {queues.LISTENER: [kept]})) == 3


def test_at_a_rate_the_median_and_the_99_percent_are_to_be_below_those_of_the_best_peer() -> None:
    ran = {
        queues.LISTENER: [AtRate(200.0, [1.0, 2.0, 8.0])],
        "one": [AtRate(200.0, [4.0, 4.0, 4.0])],
        "other": [AtRate(200.0, [3.0, 5.0, 9.0])],
    }
    against = [(line.here, line.met) for line in rate_lines(200, "", ran) if "best peer" in line.what]
    assert against == [([0.5], True), ([2.0], False)]


def test_a_peer_that_keeps_the_inserts_back_is_not_compared() -> None:
    ran = {queues.LISTENER: [AtRate(1_900.0, [8.0])], "one": [AtRate(700.0, [4.0])]}
    median, most, inserts = rate_lines(2_000, ", 5 ms to commit", ran)
    assert median.what == "insert to request, 2,000 a second, 5 ms to commit, median"
    assert median.peers == most.peers == {"one": "keeps inserts back"}
    assert inserts.peers == {"one": [700.0]}


def test_what_a_push_costs_is_told_beside_sending_alone_and_beside_what_two_cores_allow() -> None:
    run = dict.fromkeys(("wal_bytes", "dead_versions", "peak_rss_mb"), 1.0) | {
        "worker_cpu_ms": 50.0,
        "postgres_cpu_ms": 30.0,
        "sink_cpu_ms": 20.0,
        "pushes_per_s": 15_000.0,
    }
    assert allowed_per_s(run) == 20_000.0
    alone = {"worker_cpu_ms": 200.0}
    first, second, third, *others = drain_lines(
        {queues.LISTENER: [run, run], "other": [{**run, "pushes_per_s": 5_000.0}] * 2},
        [alone, alone],
        "plain",
        cost=True,
    )
    assert (first.here, first.met, first.peers) == ([0.25, 0.25], True, {"other": [0.25, 0.25]})
    assert (second.here, second.met, second.peers) == ([0.75, 0.75], False, {"other": [0.25, 0.25]})
    assert third.here == [3.0, 3.0]
    assert all(line.depends is Depends.NOTHING for line in (first, second, third))
    assert all(line.goal is None for line in others if line.depends is not Depends.NOTHING)


def test_pushes_to_users_are_told_beside_those_to_devices() -> None:
    devices = Arm(1.0, 4_000.0, 100.0, 90.0, before_ms=[5.0], inserting_ms=[], sending_ms=[50.0, 120.0])
    users = replace(devices, sent_per_s=3_000.0, postgres_us=130.0)
    same = replace(devices, postgres_us=125.0)
    found = {
        broadcast.DEVICES: devices,
        broadcast.SAME: same,
        broadcast.BROADCAST: users,
        broadcast.ROWS: devices,
    }
    lines = {line.what: (line.value, line.met) for line in broadcast_lines(found, 1_000)}
    assert lines == {
        "Postgres' CPU of a push, to users against the same rows to devices": (1.04, True),
        "Postgres' CPU of a push, to users against to devices without users and keys": (1.3, None),
        "pushes a second, to users against to devices": (0.75, None),
        "one INSERT of 1,000: pushes a second": (4_000.0, None),
        "one INSERT of 1,000: memory of the process, most": (90.0, True),
        "one INSERT of 1,000: high priority while it is sent, median": (50.0, None),
        "one INSERT of 1,000: high priority while it is sent, 99 %": (120.0, False),
    }


def test_on_a_slow_disk_what_comes_after_the_commit_is_told_in_bare_loops_of_the_fast_one() -> None:
    def figures(insert: float, own: float) -> dict[str, float]:
        return {
            "insert_p50_ms": insert,
            "insert_p99_ms": 2 * insert,
            "commit_p50_ms": insert - own,
            "own_p50_ms": own,
        }

    fast = {queues.LISTENER: figures(2.4, 1.0), queues.BARE: figures(2.0, 1.0), "other": figures(3.0, 1.0)}
    slow = {queues.LISTENER: figures(8.0, 6.0), "other": figures(14.0, 6.0)}
    lines = {line.what: line for line in idle_lines([fast], [slow], ["other"])}
    assert lines["insert to request, idle, median, to the bare loop's"].here == [1.2]
    (after,) = (line for what, line in lines.items() if what.startswith("from the commit"))
    assert (after.here, after.met, after.peers) == ([1.0], True, {"other": [4.0]})
    against = {what: line.met for what, line in lines.items() if what.endswith("the best peer's")}
    assert len(against) == 4
    assert all(against.values())


def test_neither_settings_nor_proxies_of_the_environment_reach_what_is_measured() -> None:
    environment = {
        "WAKEUP": "sweep",
        "transport": "aiohttp",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "no_proxy": "*",
        "PATH": "/bin",
    }
    assert rig.inherited(environment) == {"PATH": "/bin"}


@pytest.mark.parametrize("hard", [2_000, resource.RLIM_INFINITY])
def test_the_limit_of_open_files_is_raised_to_the_hard_one(
    monkeypatch: pytest.MonkeyPatch, hard: int
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    rig.allow_open_files(2_000)
    assert limits == [(hard, hard)]


def test_a_hard_limit_of_open_files_that_is_too_low_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1999))
    with pytest.raises(rig.BenchmarkFailed, match=r"open files .* is 1999, 2000 are needed"):
        rig.allow_open_files(2_000)
