"""Mutants of the rules of Prometheus: one number, one duration, or one comparison is changed in each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from tests.support import prometheus_rules
from tests.support.prometheus_rules import Group, Rule, TestFile, label

# A literal, a selector's or an aggregation's labels, a duration, a word, a number, a comparison.
_TOKEN = re.compile(
    r"(?P<literal>\"(?:[^\"\\]|\\.)*\")|(?P<duration>\b\d+[smhdw]\b)|(?P<word>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    r"|(?P<number>\d+(?:\.\d+)?)|(?P<matcher>=~|!~)|(?P<comparison>==|!=|>=|<=|>|<)|(?P<brace>[{}])"
)
_FLIPPED = {"==": "!=", "!=": "==", ">": "<", "<": ">", ">=": "<=", "<=": ">="}


@dataclass(frozen=True)
class Mutant:
    """Rules with one change, and the tests that should notice."""

    name: str
    groups: list[Group]
    test: TestFile


def of_all_rules() -> list[Mutant]:
    """Every mutant of every rule, with each file of tests that has to notice: those of one name are the same mutant.

    The mutants of different files alternate, so that a sample of them has some of each.
    """
    rows = [list(_of_file(test)) for test in prometheus_rules.test_files()]
    return [each for column in zip_longest(*rows) for each in column if each is not None]


def _of_file(test: TestFile) -> Iterator[Mutant]:
    groups = prometheus_rules.needed_for(test.rules)
    for g, group in enumerate(groups):
        for r, rule in enumerate(group["rules"]):
            if _is_at_home(rule, test):
                for what, changed in _mutated(rule):
                    mutated = deepcopy(groups)
                    mutated[g]["rules"][r] = changed
                    yield Mutant(f"{label(rule)}: {what}", mutated, test)


_HOMES = {
    "push_queue_read": "queue_stalled",
    "push_queue_oldest_due": "queue_stalled",
    "push_workers_alive": "worker_unscraped",
    "5m": "fast",
    "1h": "fast",
    "30m": "slow",
    "6h": "slow",
    "3d": "long",
}


def _is_at_home(rule: Rule, test: TestFile) -> bool:
    """Whether this file has to notice a change of the rule: several depend on some recording rules."""
    if "record" not in rule:
        return True
    name = str(rule["record"])
    if name == "instance:push_queue_read_age_seconds:fresh":
        return test.path.stem == "instance_frozen"
    if "budget" in name:
        return test.path.stem.endswith("burn_fast")
    for part, home in _HOMES.items():
        if (name.endswith(part) and "push_accepted" not in name) or (len(part) > 3 and part in name):
            return home in test.path.stem
    return True


def _mutated(rule: Rule) -> Iterator[tuple[str, Rule]]:
    expr = str(rule["expr"])
    in_braces = False
    for found in _TOKEN.finditer(expr):
        kind, text = found.lastgroup, found.group()
        if kind == "brace":
            in_braces = text == "{"
        if in_braces:
            continue
        for changed in _changes(str(kind), text):
            place = f"{text} at {found.start()} to {changed}"
            yield place, {**rule, "expr": expr[: found.start()] + changed + expr[found.end() :]}
    for key in ("for", "keep_firing_for"):
        if key in rule:
            for changed in _changes("duration", str(rule[key])):
                yield f"{key} {rule[key]} to {changed}", {**rule, key: changed}


def _changes(kind: str, text: str) -> list[str]:
    match kind:
        case "comparison":
            return [_FLIPPED[text]]
        case "number":
            value = float(text)
            return ["1"] if value == 0 else [f"{value * 1.5:g}", f"{value / 1.5:g}"]
        case "duration":
            seconds = prometheus_rules.seconds(text)
            return [f"{seconds * 2}s", f"{seconds // 2}s"]
        case _:
            return []


def survivors(promtool: str, mutants: Iterable[Mutant], place: Path) -> set[str]:
    """The names of those that pass every test of all their files."""
    named = {f"m{number}": each for number, each in enumerate(mutants)}
    written = [prometheus_rules.write_test(place, key, each.test, each.groups) for key, each in named.items()]
    reports = prometheus_rules.run_tests(promtool, written)
    noticed = {named[key].name for key, report in reports.items() if report}
    return {each.name for each in named.values()} - noticed
