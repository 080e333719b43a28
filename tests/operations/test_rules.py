"""The rules of Prometheus: promtool's own tests of them, and whether those tests would notice a wrong number."""

from __future__ import annotations

import os
import re
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.support import prometheus_rules
from tests.support import rule_mutants as mutants
from tests.support.prometheus_rules import DEPLOY, RULES, TESTS, alerts, groups, label, rules
from tests.support.tools import tool

SEVERITIES = {"page", "ticket", "none"}

# A mutant that no test can tell from the original, and why.
EQUIVALENT = {
    "Watchdog/none: 1 at 7 to 1.5": "a constant fires whatever its value is",
    "Watchdog/none: 1 at 7 to 0.666667": "a constant fires whatever its value is",
}


def test_promtool_has_no_complaint_about_the_rules() -> None:
    done = subprocess.run(
        [
            tool("promtool"),
            "check",
            "rules",
            "--lint=all",
            "--lint-fatal",
            *map(str, sorted(RULES.glob("*.yml"))),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    """With a token where the configuration names one: promtool asks for the file."""
    token = tmp_path / "token"
    token.write_text("something")
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    [named] = re.findall(r"credentials_file: (\S+)", text)
    path = tmp_path / "prometheus.yml"
    path.write_text(text.replace(named, str(token)).replace("rules/*.yml", f"{RULES}/*.yml"))
    done = subprocess.run(
        [tool("promtool"), "check", "config", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(list(RULES.glob('*.yml')))} rule files found" in done.stdout


def test_the_alerts_pass_their_tests(tmp_path: Path) -> None:
    """Each file runs against the rules that it is about, which takes a tenth of the time."""
    written = [
        prometheus_rules.write_test(tmp_path, test.path.stem, test, prometheus_rules.needed_for(test.rules))
        for test in prometheus_rules.test_files()
    ]
    reports = prometheus_rules.run_tests(tool("promtool"), written)
    assert {name: report for name, report in reports.items() if report} == {}


@pytest.mark.parametrize("name", ["watchdog", "listener_down", "token_loss"])
def test_a_file_of_tests_passes_as_it_is_called_by_hand(name: str) -> None:
    done = subprocess.run(
        [tool("promtool"), "test", "rules", f"{name}.yml"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    described: set[str] = set()
    for test in prometheus_rules.test_files():
        for case in test.content["tests"]:
            expected = [
                (check.get("exp_alerts", []), check["alertname"]) for check in case.get("alert_rule_test", [])
            ]
            for found, name in expected:
                described |= {_identity(name, alert["exp_labels"]) for alert in found}
                if not found:
                    silent |= {label(rule) for rule in test.rules}
            for check in case.get("promql_expr_test", []):
                samples = [_labels(sample["labels"]) for sample in check["exp_samples"]]
                fires |= {_identity(sample["alertname"], sample) for sample in samples}
                if not samples:
                    silent |= {label(rule) for rule in test.rules}
    wanted = {label(rule) for rule in alerts()}
    assert fires == wanted
    assert described == wanted, "the text of the alert is compared too"
    assert silent == wanted - {"Watchdog/none"}, "Watchdog always fires"


def _labels(text: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="([^"]*)"', text))


def _identity(name: str, labels: dict[str, Any]) -> str:
    """What label() says of the rule whose alert has these labels."""
    return "/".join([name, *(str(labels[key]) for key in ("severity", "window") if key in labels)])


def test_every_alert_says_how_urgent_it_is_and_what_to_do() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in SEVERITIES, rule
        assert "for" in rule or rule["alert"] == "Watchdog", rule
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}, rule
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{rule['alert'].lower()}", rule
    for group in groups():
        pages = {rule["labels"]["severity"] for rule in group["rules"] if "alert" in rule}
        if group["name"] == "push-listener-causes":
            assert pages == {"ticket"}


def test_no_rule_mixes_two_projects() -> None:
    """Each aggregation keeps the job."""
    for rule in rules():
        for aggregation in re.findall(r"\b(?:sum|max|min|count|group)\s+by\s*\(([^)]*)\)", rule["expr"]):
            assert "job" in [part.strip() for part in aggregation.split(",")], label(rule)
        assert not re.search(r"\b(?:sum|max|min|count|group)\s*\(", rule["expr"]), label(rule)
        assert 'job="' not in rule["expr"], "the rules name no job"


def test_the_tests_notice_a_wrong_number(tmp_path: Path) -> None:
    """Each mutant of an alert, or of a recording rule that it depends on, fails in at least one file of tests.

    All of them: MUTANTS=all. Otherwise every seventy-first.
    """
    every = mutants.of_all_rules()
    names = list(dict.fromkeys(each.name for each in every))
    assert EQUIVALENT.keys() <= set(names)
    chosen = set(names if os.environ.get("MUTANTS") == "all" else names[::71]) - EQUIVALENT.keys()
    assert (
        mutants.survivors(tool("promtool"), [each for each in every if each.name in chosen], tmp_path)
        == set()
    )


def test_an_unchanged_rule_is_no_mutant_that_fails(tmp_path: Path) -> None:
    """The way mutants are run does not itself make tests fail."""
    test = next(test for test in prometheus_rules.test_files() if test.path.stem == "queue_old")
    unchanged = mutants.Mutant("unchanged", deepcopy(prometheus_rules.needed_for(test.rules)), test)
    assert mutants.survivors(tool("promtool"), [unchanged], tmp_path) == {"unchanged"}
