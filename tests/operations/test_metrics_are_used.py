"""Each metric is in a rule or in a panel: one that nobody looks at costs memory and says nothing."""

from __future__ import annotations

import re

import pytest

from listener.metrics import labels
from tests.support import dashboard, metric_names
from tests.support.prometheus_rules import names_in, rules

EXEMPT = {
    "process_virtual_memory_bytes": "comes with the others from prometheus_client; address space says nothing here",
    "push_whole_look_seconds": "the runbook of SnapshotHeld reads it; alone it is no reason to act",
}
"""Metrics that are in no rule and no panel, and why."""


def _used() -> set[str]:
    words = set[str]()
    for rule in rules():
        words |= names_in(rule["expr"])
    for query in dashboard.queries():
        words |= names_in(query.expr)
    endings = {word.removesuffix(ending) for word in words for ending in ("_bucket", "_count", "_sum")}
    return words | endings


def test_every_metric_is_in_a_rule_or_a_panel() -> None:
    assert metric_names.families() - _used() == EXEMPT.keys()


def test_every_metric_that_a_rule_asks_for_exists() -> None:
    known = metric_names.series() | {str(rule["record"]) for rule in rules() if "record" in rule}
    for rule in rules():
        asked = {
            name for name in names_in(rule["expr"]) if name.startswith(("push_", "process_")) or ":" in name
        }
        assert asked <= known, rule["expr"]


def _expressions() -> list[str]:
    return [str(rule["expr"]) for rule in rules()] + [query.expr for query in dashboard.queries()]


def _selected() -> set[tuple[str, str, str]]:
    """Each value of a label that a rule or a panel selects or excludes, with the series and the label."""
    return {
        (name, label, value)
        for expr in _expressions()
        for name, inner in re.findall(r"(\w+)\{([^}]*)\}", expr)
        for label, values in re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', inner)
        for value in values.split("|")
    }


def test_every_value_of_a_label_that_is_selected_exists() -> None:
    """A misspelt one selects nothing, and the alert never fires."""
    known = metric_names.label_values()
    checked = {each for each in _selected() if each[:2] in known}
    assert {label for _, label, _ in checked} == {"code", "le", "outcome", "reason", "status"}
    assert {each for each in checked if each[2] not in known[each[:2]]} == set()


@pytest.mark.parametrize("code", ["INTERNAL_ERROR", "NOT_WRITTEN", "QUARANTINED"])
def test_a_fault_of_push_listener_is_a_code_that_pushes_die_of(code: str) -> None:
    assert code in labels.DEAD
    assert ("push_dead_total", "code", code) in _selected()
