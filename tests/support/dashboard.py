"""The dashboard of deploy/grafana, and its queries as Prometheus would get them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.support.prometheus_rules import DEPLOY

DASHBOARD = DEPLOY / "grafana" / "dashboards" / "push-listener.json"

Panel = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    panel: Panel
    written: str
    """As it is in the dashboard."""
    legend: str

    @property
    def expr(self) -> str:
        """With values for the variables of Grafana."""
        return resolved(self.written)


VARIABLES: Mapping[str, str] = {"$__rate_interval": "1m", "$job": "push-listener", "$instance": ".*"}


def resolved(query: str, variables: Mapping[str, str] = VARIABLES) -> str:
    """A query with values in the place of Grafana's variables."""
    for name, value in variables.items():
        query = query.replace(name, value)
    return query


@cache
def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def panels() -> list[Panel]:
    """Every panel that shows something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    """Every query of every panel."""
    for panel in panels():
        for target in panel.get("targets", []):
            yield Query(panel, target["expr"], target["legendFormat"])
