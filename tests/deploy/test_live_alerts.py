"""From a fault to the call, and from recovery to the all-clear: real listeners, Prometheus and Alertmanager.

The rules and both configurations are those of deploy/, with durations a tenth as long (tests/support/monitored.py).
test_live_listeners.py goes on: each file is run by a process of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.monitored import JOB, Say, monitored, scaled_rules
from tests.support.postgres import Database
from tests.support.prometheus_rules import RULES

pytestmark = pytest.mark.timeout(900)


def test_only_durations_are_scaled() -> None:
    text = (RULES / "symptoms.yml").read_text()
    scaled = scaled_rules(text)
    assert "for: 6000ms" in scaled
    assert "[8640000ms]" in scaled
    assert "> 60" in scaled
    assert "[2m]" not in scaled


async def test_fcm_fails_and_comes_back(database: Database, tmp_path: Path, say: Say) -> None:
    async with monitored(database, tmp_path) as watched:
        await watched.shows(f'push_sends_total{{job="{JOB}",outcome="accepted"}} > 10')
        await watched.called("Watchdog", "firing", "heartbeat")

        watched.timeline.note("FCM answers 503 to everything")
        rule = watched.emulator.add_fault("unavailable")
        await watched.alert("Paused", "pending", reason="away")
        await watched.alert("Paused", "firing", reason="away", severity="page")
        assert (await watched.called("Paused", "firing"))["job"] == JOB
        await watched.alert("QueueStalled", "firing")
        await watched.called("QueueStalled", "firing")

        watched.timeline.note("FCM is well again")
        watched.emulator.remove_fault(rule)
        await watched.alert("QueueStalled", "inactive")
        await watched.alert("Paused", "inactive", severity="page")
        await watched.called("Paused", "resolved")
        assert not [
            labels for _, _, labels in watched.webhook.received if labels["alertname"] == "ListenerDown"
        ]
        say("FCM fails", watched)
