"""Likewise, when nothing listens, nobody runs, and nothing is sent. See test_live_alerts.py."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.support.monitored import JOB, LISTEN_ROLE, Say, monitored
from tests.support.postgres import Database

pytestmark = pytest.mark.timeout(900)


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
