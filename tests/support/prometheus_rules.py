"""The rules of deploy/prometheus, their unit tests, and mutants of the rules."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
DEPLOY = PROJECT / "deploy"
RULES = DEPLOY / "prometheus" / "rules"
TESTS = DEPLOY / "prometheus" / "tests"

Rule = dict[str, Any]
Group = dict[str, Any]

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LITERAL = re.compile(r"'[^']*'|\"(?:[^\"\\]|\\.)*\"")


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def seconds(duration: str) -> int:
    """A duration of Prometheus such as 90s or 1h30m, in seconds."""
    return sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"(\d+)([smhdw])", duration))


@cache
def groups() -> tuple[Group, ...]:
    """Every group of every rule file, in the order of evaluation that the unit tests ask for."""
    found = [
        group
        for name in ("shared", "objectives", "symptoms", "causes")
        for group in yaml.safe_load((RULES / f"{name}.yml").read_text())["groups"]
    ]
    assert len(list(RULES.glob("*.yml"))) == 4
    return tuple(found)


def rules() -> Iterator[Rule]:
    """Every rule."""
    for group in groups():
        yield from group["rules"]


def alerts() -> list[Rule]:
    """Every rule that is an alert; a name may have several."""
    return [rule for rule in rules() if "alert" in rule]


def names_in(expr: str) -> set[str]:
    """The words of an expression that may be metrics: no label's value is among them."""
    return set(_NAME.findall(_LITERAL.sub('""', expr)))


def label(rule: Rule) -> str:
    """What a rule is called in reports: its name, and what tells it from others of that name."""
    if "record" in rule:
        return ":".join([str(rule["record"]), *map(str, rule.get("labels", {}).values())])
    return "/".join([rule["alert"], *map(str, rule["labels"].values())])


def needed_for(wanted: Iterable[Rule]) -> list[Group]:
    """Groups with these alerts and the recording rules they depend on, and nothing else."""
    names = {rule["record"]: rule for rule in rules() if "record" in rule}
    keep = [label(rule) for rule in wanted]
    seen = set(keep)
    words = [names_in(rule["expr"]) for rule in rules() if label(rule) in seen]
    while words:
        for word in words.pop() & names.keys():
            for rule in rules():
                if rule.get("record") == word and label(rule) not in seen:
                    seen.add(label(rule))
                    words.append(names_in(rule["expr"]))
    found = []
    for group in groups():
        kept = [deepcopy(rule) for rule in group["rules"] if label(rule) in seen]
        if kept:
            found.append({**group, "rules": kept})
    return found


@dataclass(frozen=True)
class TestFile:
    """A file of unit tests, which is about the rules of one alert."""

    __test__ = False

    path: Path
    content: dict[str, Any]

    @property
    def rules(self) -> list[Rule]:
        """The alerts that it is about: those of its name, and of its window if it names one."""
        name, window = self.subject
        return [
            rule
            for rule in alerts()
            if rule["alert"] == name and window in (None, rule["labels"].get("window"))
        ]

    @property
    def subject(self) -> tuple[str, str | None]:
        """The alert's name, and the label "window" of what it expects, if it has that."""
        text = self.path.read_text()
        [name] = set(re.findall(r'alertname(?:: |=")(\w+)', text))
        windows = set(re.findall(r'window="(\w+)"', text))
        assert len(windows) <= 1
        return name, next(iter(windows), None)


@cache
def test_files() -> tuple[TestFile, ...]:
    """Every file of unit tests."""
    return tuple(TestFile(path, yaml.safe_load(path.read_text())) for path in sorted(TESTS.glob("*.yml")))


def write_test(place: Path, name: str, test: TestFile, its_groups: list[Group]) -> Path:
    """Writes a file of tests that is run against these groups only."""
    (place / f"{name}.rules").write_text(yaml.safe_dump({"groups": its_groups}, sort_keys=False))
    content = {
        **test.content,
        "rule_files": [f"{name}.rules"],
        "group_eval_order": [group["name"] for group in its_groups],
    }
    path = place / f"{name}.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run_tests(promtool: str, files: Iterable[Path], *, jobs: int = 2, batch: int = 8) -> Mapping[str, str]:
    """What promtool reports about each file, by its stem: empty where every test passed."""
    paths = sorted(files)
    batches = [paths[i : i + batch] for i in range(0, len(paths), batch)]
    with ThreadPoolExecutor(jobs) as pool:
        reports: dict[str, str] = {}
        for report in pool.map(lambda some: _run_batch(promtool, some), batches):
            reports |= report
    return reports


def _run_batch(promtool: str, paths: list[Path]) -> dict[str, str]:
    # promtool prints the faults to standard error and the files they belong to to standard output.
    done = subprocess.run(
        [promtool, "test", "rules", *map(str, paths)],
        env={**os.environ, "GOGC": "400", "GOMAXPROCS": "1"},  # which saves a fifth of the CPU time
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    parts = re.split(r"^Unit Testing:  (.*)$", done.stdout, flags=re.MULTILINE)[1:]
    found = {
        Path(path).stem: "" if text.split() == ["SUCCESS"] else text
        for path, text in zip(parts[::2], parts[1::2], strict=True)
    }
    assert found.keys() == {path.stem for path in paths}, done.stdout[-2000:]
    return found
