"""From a fault to the call, and from recovery to the all-clear: real listeners, Prometheus and Alertmanager.

The rules and both configurations are those of deploy/, with durations a tenth as long (tests/support/monitored.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.support.monitored import JOB, LISTEN_ROLE, SCALE, Monitored, monitored, scaled_rules
from tests.support.postgres import Database
from tests.support.prometheus_rules import RULES

Say = Callable[[str, Monitored], None]

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Prints a timeline although pytest captures what tests print."""

    def _say(title: str, watched: Monitored) -> None:
        with capsys.disabled():
            print(f"\n{title} (durations of the rules / {SCALE})\n{watched.timeline}")

    return _say


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


async def test_listen_is_lost_and_comes_back(database: Database, tmp_path: Path, say: Say) -> None:
    async with monitored(database, tmp_path) as watched:
        await watched.shows(f'sum(push_listening{{job="{JOB}"}}) == 2')
        role = sql.Identifier(LISTEN_ROLE)
        with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
            watched.timeline.note("the role of LISTEN may not log in, and its sessions are terminated")
            connection.execute(sql.SQL("alter role {} nologin").format(role))
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (LISTEN_ROLE,)
            )
            await watched.alert("NotListening", "pending", severity="page")
            await watched.alert("NotListening", "firing", severity="page")
            await watched.called("NotListening", "firing")

            watched.timeline.note("the role may log in again")
            connection.execute(sql.SQL("alter role {} login").format(role))
            await watched.alert("NotListening", "inactive", severity="page")
            await watched.called("NotListening", "resolved")
        say("LISTEN is lost", watched)


async def test_fcm_refuses_while_nothing_is_sent(database: Database, tmp_path: Path, say: Say) -> None:
    async with monitored(database, tmp_path, load=_none) as watched:
        await watched.shows(f'sum(push_probes_total{{job="{JOB}",outcome="accepted"}}) >= 2')
        watched.timeline.note("the role of the service account is taken away")
        rule = watched.emulator.add_fault("permission_denied")
        await watched.alert("ProbeRefused", "pending")
        await watched.alert("ProbeRefused", "firing", severity="page")
        assert (await watched.called("ProbeRefused", "firing"))["job"] == JOB

        watched.timeline.note("the role is back")
        watched.emulator.remove_fault(rule)
        await watched.alert("ProbeRefused", "inactive")
        await watched.called("ProbeRefused", "resolved")
        say("FCM refuses while nothing is sent", watched)


async def _none(_: str) -> None:
    """No load."""


async def test_no_listener_runs_and_one_starts_again(database: Database, tmp_path: Path, say: Say) -> None:
    async with monitored(database, tmp_path) as watched:
        await watched.shows(f'count(push_build_info{{job="{JOB}"}}) == 2')
        watched.timeline.note("both listeners are killed")
        for listener in watched.listeners:
            await listener.close()
        await watched.alert("ListenerDown", "pending", job=JOB)
        await watched.alert("ListenerDown", "firing", job=JOB)
        assert (await watched.called("ListenerDown", "firing"))["job"] == JOB

        watched.timeline.note("one listener starts")
        await watched.start_listener(watched.ports[0])
        await watched.alert("ListenerDown", "inactive")
        await watched.called("ListenerDown", "resolved")
        say("No listener runs", watched)
