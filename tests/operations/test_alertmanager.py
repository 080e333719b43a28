"""The configuration of Alertmanager: who gets which alert, and which alerts silence others."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.monitoring import alertmanager
from tests.support.prometheus_rules import DEPLOY, Rule, alerts, label
from tests.support.tools import tool

CONFIGURATION = DEPLOY / "alertmanager" / "alertmanager.yml"

RECEIVERS = {"page": "pager", "ticket": "tickets", "none": "heartbeat"}

PATIENCE = 60.0


def amtool(*arguments: str) -> str:
    done = subprocess.run(
        [tool("amtool"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": "/nonexistent"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_amtool_takes_the_configuration() -> None:
    output = amtool("check-config", str(CONFIGURATION))
    assert "3 inhibit rules" in output
    assert "3 receivers" in output


@pytest.mark.parametrize("rule", alerts(), ids=label)
def test_an_alert_reaches_its_receiver(rule: Rule) -> None:
    labels = {"alertname": rule["alert"], "job": "push-listener", **rule["labels"]}
    amtool(
        "config",
        "routes",
        "test",
        f"--config.file={CONFIGURATION}",
        f"--verify.receivers={RECEIVERS[rule['labels']['severity']]}",
        *(f"{name}={value}" for name, value in labels.items()),
    )


def test_an_alert_without_a_severity_is_a_ticket() -> None:
    amtool(
        "config",
        "routes",
        "test",
        f"--config.file={CONFIGURATION}",
        "--verify.receivers=tickets",
        "alertname=Other",
    )


async def test_what_silences_what(tmp_path: Path) -> None:
    down = {"alertname": "ListenerDown", "severity": "page", "job": "one"}
    fired: list[dict[str, str]] = [
        down,
        {"alertname": "Watchdog", "severity": "none"},
        {"alertname": "QueueStalled", "severity": "page", "job": "one"},
        {"alertname": "QueueStalled", "severity": "page", "job": "two"},
        {"alertname": "QueueOld", "severity": "ticket", "job": "two", "priority": "high"},
        {"alertname": "ProbeRefused", "severity": "page", "job": "two"},
        {"alertname": "DatabaseErrors", "severity": "ticket", "job": "two", "statement": "claim"},
        {"alertname": "LateBurn", "severity": "page", "job": "two", "priority": "high", "window": "1h"},
        {"alertname": "LateBurn", "severity": "ticket", "job": "two", "priority": "high", "window": "3d"},
        {"alertname": "LateBurn", "severity": "ticket", "job": "two", "priority": "normal", "window": "3d"},
        {"alertname": "LateBurn", "severity": "ticket", "job": "three", "priority": "high", "window": "3d"},
        {"alertname": "NotListening", "severity": "page", "job": "two"},
        {"alertname": "NotListening", "severity": "ticket", "job": "two", "instance": "a"},
    ]
    # The placeholders are never called: the route waits longer than the test takes.
    configuration = tmp_path / "alertmanager.yml"
    configuration.write_text(
        CONFIGURATION.read_text()
        .replace("group_wait: 0s", "group_wait: 1h")
        .replace("group_wait: 15s", "group_wait: 1h")
    )
    expected = sorted((fired[i] for i in (2, 4, 5, 8, 12)), key=_text)
    silenced: list[dict[str, str]] = []
    async with alertmanager(configuration, tmp_path) as server:
        await server.post("/api/v2/alerts", [{"labels": labels} for labels in fired])
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while silenced != expected:  # it takes them in, and then compares them, by itself
                    await asyncio.sleep(0.05)
                    known = await server.get("/api/v2/alerts")
                    inhibited = (alert["labels"] for alert in known if alert["status"]["inhibitedBy"])
                    silenced = sorted(inhibited, key=_text)
    assert silenced == expected
    assert len(known) == len(fired)


def _text(labels: dict[str, Any]) -> str:
    return str(sorted(labels.items()))
