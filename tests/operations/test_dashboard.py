"""The dashboard of Grafana: its queries are PromQL, and ask for metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import yaml

from tests.support import dashboard, metric_names
from tests.support.prometheus_rules import DEPLOY, names_in, rules
from tests.support.tools import tool

ROWS = ["Are pushes going out?", "Queue", "FCM", "Delivery", "Postgres", "Process"]
VARIABLES = ["datasource", "job", "instance"]


def test_the_rows_are_in_the_order_of_the_questions() -> None:
    assert [panel["title"] for panel in dashboard.dashboard()["panels"] if panel["type"] == "row"] == ROWS


def test_the_variables_choose_data_source_job_and_instance() -> None:
    assert [each["name"] for each in dashboard.dashboard()["templating"]["list"]] == VARIABLES


def test_promtool_parses_every_query(tmp_path: Path) -> None:
    """As the expressions of recording rules, with values for Grafana's variables."""
    exprs = [query.expr for query in dashboard.queries()]
    assert not [expr for expr in exprs if "$" in expr]
    path = tmp_path / "queries.yml"
    found = [{"record": f"query:{number}", "expr": expr} for number, expr in enumerate(exprs)]
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": found}]}))
    done = subprocess.run(
        [tool("promtool"), "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(exprs)} rules found" in done.stdout


def test_each_query_asks_for_a_metric_that_exists() -> None:
    known = metric_names.series() | {str(rule["record"]) for rule in rules() if "record" in rule} | {"ALERTS"}
    for query in dashboard.queries():
        asked = {name for name in names_in(query.expr) if re.match(r"push_|process_|[a-z_]+:|[A-Z]+$", name)}
        assert asked, query.written
        assert asked <= known, query.written


def test_each_query_keeps_to_the_job_and_rates_to_the_interval() -> None:
    for query in dashboard.queries():
        written = re.sub(r"/ on \(priority\) group_left \(\) priority:push_late:budget", "", query.written)
        assert written.count('job="$job"') == len(re.findall(r"\{", re.sub(r"\{\{", "", written))), (
            query.written
        )
        assert "vector(0)" not in query.written
        assert re.findall(r"\[([^\]]+)\]", query.written) in (
            [],
            *[["$__rate_interval"] * n for n in range(1, 5)],
        )
        assert "rate(" not in query.written or "$__rate_interval" in query.written


def test_each_panel_says_what_it_shows_and_in_which_unit() -> None:
    titles = [panel["title"] for panel in dashboard.panels()]
    assert len(set(titles)) == len(titles)
    for panel in dashboard.panels():
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        if panel["type"] != "alertlist":
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["targets"], panel["title"]
    assert "alertlist" in {panel["type"] for panel in dashboard.panels()}


def test_no_panel_covers_another() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard.dashboard()["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24, panel["title"]
        own = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not own & cells, panel["title"]
        cells |= own
    ids = [panel["id"] for panel in dashboard.dashboard()["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_file_is_as_json_writes_it() -> None:
    text = dashboard.DASHBOARD.read_text()
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


def test_the_provisioning_names_what_the_dashboard_asks_for() -> None:
    place = DEPLOY / "grafana" / "provisioning"
    sources = yaml.safe_load((place / "datasources" / "prometheus.yml").read_text())
    assert {each["type"] for each in sources["datasources"]} == {"prometheus", "alertmanager"}
    scrapes = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["global"][
        "scrape_interval"
    ]
    assert sources["datasources"][0]["jsonData"]["timeInterval"] == scrapes
    [provider] = yaml.safe_load((place / "dashboards" / "push-listener.yml").read_text())["providers"]
    assert provider["type"] == "file"
