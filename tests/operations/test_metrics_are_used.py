"""Each metric is in a rule or in a panel: one that nobody looks at costs memory and says nothing."""

from __future__ import annotations

from tests.support import dashboard, metric_names
from tests.support.prometheus_rules import names_in, rules

EXEMPT = {
    "process_virtual_memory_bytes": "comes with the others from prometheus_client; address space says nothing here",
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
