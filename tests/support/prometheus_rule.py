"""Wraps the rules of Prometheus in a PrometheusRule, which the Prometheus operator reads. `scripts/prometheus-rule`."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.support.service import PROJECT

RULES = PROJECT / "deploy/prometheus/rules"
WRITTEN = PROJECT / "deploy/kubernetes/prometheusrule.yaml"

_HEAD = """\
# Written by scripts/prometheus-rule from deploy/prometheus/rules. Change those, not this.
"""


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def text(rules: Path) -> str:
    """The resource, as YAML, with all groups of the files in a directory."""
    groups = [
        group for path in sorted(rules.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]
    ]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "push-listener", "labels": {"app.kubernetes.io/name": "push-listener"}},
        "spec": {"groups": groups},
    }
    return _HEAD + yaml.dump(resource, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    WRITTEN.write_text(text(RULES))
