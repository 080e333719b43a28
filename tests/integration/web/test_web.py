"""/metrics, /healthz and /readyz of a running service."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry, Counter

from listener.config import Settings, load
from listener.emulator import Emulator
from listener.web.server import PortTaken, Web
from tests.support.postgres import Database
from tests.support.service import (
    PATIENCE,
    Rows,
    environment,
    get,
    program,
    serving,
    settings_for,
    shown,
)
from tests.support.tools import tool

TOKEN = "0123456789abcdef"


def settings(**given: object) -> Settings:
    """Settings of a service that never connects to its database."""
    return load(
        **{"database_url": "postgresql://nobody@127.0.0.1:1/none", "port": 0, "metrics_token": None, **given}
    )


@asynccontextmanager
async def web(obstacles: list[str] | None = None, **given: object) -> AsyncIterator[int]:
    registry = CollectorRegistry()
    Counter("push_sends_total", "What it counts.", registry=registry).inc(3)
    async with Web(settings(**given), registry, lambda: obstacles or []).serve() as port:
        yield port


# --- who may read /metrics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_metrics_are_open_on_loopback(host: str) -> None:
    async with web(host=host) as port:
        status, text = await get(port, "/metrics")
    assert status == 200
    assert "push_sends_total 3.0" in text


@pytest.mark.parametrize("host", [None, "0.0.0.0"])
async def test_metrics_without_a_token_are_closed_where_other_machines_can_connect(host: str | None) -> None:
    async with web(host=host) as port:
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN}"}):
            status, text = await get(port, "/metrics", **headers)
            assert status == 403
            assert text.startswith("closed: set METRICS_TOKEN")
        assert (await get(port, "/healthz"))[0] == (await get(port, "/readyz"))[0] == 200


async def test_a_private_port_serves_the_metrics_without_a_token_and_nothing_else() -> None:
    registry = CollectorRegistry()
    Counter("push_sends_total", "What it counts.", registry=registry).inc(3)
    server = Web(settings(metrics_port=0, metrics_token=TOKEN), registry, list)
    async with server.serve() as port:
        assert server.metrics_port not in (None, port)
        assert server.metrics_port is not None
        status, text = await get(server.metrics_port, "/metrics")
        assert (status, "push_sends_total 3.0" in text) == (200, True)
        for path in ("/", "/healthz", "/readyz"):
            assert (await get(server.metrics_port, path))[0] == 404
        assert (await get(port, "/metrics"))[0] == 401


async def test_a_private_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        given = settings(metrics_host="127.0.0.1", metrics_port=number)
        with pytest.raises(PortTaken, match=f"METRICS_HOST, METRICS_PORT: cannot listen on port {number}"):
            async with Web(given, CollectorRegistry(), list).serve():
                pass


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
async def test_metrics_with_a_token_are_open_to_those_who_send_it(host: str | None) -> None:
    async with web(host=host, metrics_token=TOKEN) as port:
        for given in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer  {TOKEN} "):
            assert (await get(port, "/metrics", Authorization=given))[0] == 200
        for given in ("", TOKEN, "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"):
            status, text = await get(port, "/metrics", Authorization=given)
            assert (given, status, text) == (given, 401, "send METRICS_TOKEN as a bearer token\n")
        assert (await get(port, "/metrics"))[0] == 401


@pytest.mark.parametrize("given", [f"{TOKEN}\n", f" {TOKEN} "])
async def test_a_token_with_the_end_of_the_line_that_it_was_read_from(given: str) -> None:
    """No header can carry it, and a secret made of a file has it often."""
    async with web(metrics_token=given) as port:
        assert (await get(port, "/metrics", Authorization=f"Bearer {TOKEN}"))[0] == 200


async def test_a_header_that_is_not_utf_8_is_refused() -> None:
    async with web(metrics_token=TOKEN) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\nConnection: close\r\n\r\n"
        )
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_the_client_chooses_the_format() -> None:
    async with web(host="127.0.0.1") as port:
        _, plain = await get(port, "/metrics")
        _, open_metrics = await get(port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert not plain.endswith("# EOF\n")
    assert open_metrics.endswith("# EOF\n")


# --- health ------------------------------------------------------------------------------------------------


async def test_readiness_names_the_obstacles_and_health_ignores_them() -> None:
    async with web(["the database cannot be reached", "not listening for new rows"]) as port:
        assert await get(port, "/readyz") == (
            503,
            "the database cannot be reached\nnot listening for new rows\n",
        )
        assert await get(port, "/healthz") == (200, "ok\n")
    async with web() as port:
        assert await get(port, "/readyz") == (200, "ok\n")


async def test_other_paths_are_not_found() -> None:
    async with web() as port:
        assert (await get(port, "/healthz"))[0] == 200
        for path in ("/", "/metrics/", "/../etc/passwd", "/readyz/x", "/favicon.ico"):
            assert (await get(port, path))[0] == 404


async def test_a_process_without_a_database_is_healthy_but_not_ready(database: Database) -> None:
    database.server.stop()
    async with (
        Emulator() as emulator,
        program("run", env=environment(database.dsn, emulator), forked=True) as running,
    ):
        port = await running.port()
        assert await get(port, "/readyz") == (503, "the database has not been reached yet\n")
        assert await get(port, "/healthz") == (200, "ok\n")
        await asyncio.to_thread(database.server.start)
        await running.said("ready")
        assert await get(port, "/readyz") == (200, "ok\n")
        await asyncio.to_thread(database.server.stop)
        await running.said("doorbell lost")
        status, text = await get(port, "/readyz")
        assert status == 503
        assert "not listening for new rows" in text
        assert await get(port, "/healthz") == (200, "ok\n")


async def test_a_port_in_use_is_a_fault_of_the_configuration(database: Database) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        async with (
            Emulator() as emulator,
            program("run", env=environment(database.dsn, emulator, port=port), forked=True) as running,
        ):
            assert await running.ended() == 2
    assert f"HOST, PORT: cannot listen on port {port}: another program listens on it" in running.err
    assert "Traceback" not in running.output


SHARED = ("push_queue_", "push_stats_", "push_receipts_", "push_workers_", "push_notify_", "push_oldest_",
          "push_clock_", "push_event_loop_", "process_", "push_unwritable_")  # fmt: skip
"""Metrics that do not count what this process does."""


# --- the metrics --------------------------------------------------------------------------------------------


def samples(text: str) -> dict[str, float]:
    found = re.findall(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


async def test_metrics_after_known_traffic(database: Database, rows: Rows) -> None:
    user = uuid4()
    await rows.device("phone", user)
    await rows.device("tablet", user, "ios")
    await rows.query(
        "insert into push_notifications (device_token, title, next_attempt_at) "
        "select 'later', 't', now() + interval '1 hour' from generate_series(1, 4)"
    )
    async with (
        Emulator(faults=["unavailable,token=busy,times=2"]) as emulator,
        serving(known := settings_for(database.dsn, emulator, queue_depth_interval=1)) as service,
    ):
        assert service.port is not None
        for n in range(3):
            await rows.add(device_token=f"t{n}", title="t")
        await rows.add(user_id=user, title="t")
        await rows.add(topic="news", title="t")
        await rows.add(device_token="busy", title="t")
        await rows.add(device_token="dead-phone", title="t")
        await rows.add(device_token="t", title=None, body="b")
        await rows.add(device_token=None, title="t")
        (expired,) = await rows.query(
            "insert into push_notifications (device_token, title, expires_at) "
            "values ('t', 't', now() - interval '1 s') returning id"
        )
        ids = [push_id for push_id, row in (await rows.all()).items() if row["device_token"] != "later"]
        await rows.over(*ids, expired["id"])
        await shown(service.metrics, "push_in_flight", 0)
        status, text = await get(service.port, "/metrics")
    assert status == 200
    found = samples(text)
    times = {name for name in found if "_bucket" in name or "_seconds_sum" in name or "_timestamp_" in name}
    counts = {name: value for name, value in found.items() if name not in times and value}
    for name in [each for each in counts if each.startswith(SHARED) or "database_statement" in each]:
        del counts[name]
    assert counts.pop("push_whole_look_seconds", 0.0) >= 0.0
    rings = counts.pop("push_doorbell_notifications_total")
    # One for each of the ten inserts; Postgres may make one of some.
    assert 1 <= rings <= 10
    assert counts.pop("push_in_flight", 0) == 0
    version = next(name for name in counts if name.startswith("push_build_info"))
    del counts[version]
    assert counts == {
        'push_sends_total{code="OK",outcome="accepted",platform="android"}': 1,
        'push_sends_total{code="OK",outcome="accepted",platform="ios"}': 1,
        'push_sends_total{code="OK",outcome="accepted",platform="topic"}': 1,
        'push_sends_total{code="OK",outcome="accepted",platform="unknown"}': 4,
        'push_sends_total{code="UNAVAILABLE",outcome="retry",platform="unknown"}': 2,
        'push_sends_total{code="UNREGISTERED",outcome="drop_target",platform="unknown"}': 1,
        'push_retries_total{code="UNAVAILABLE"}': 2,
        'push_settled_total{status="sent"}': 6,
        'push_settled_total{status="failed"}': 2,
        'push_settled_total{status="dead"}': 3,
        'push_settled_total{status="expired"}': 1,
        'push_dead_total{code="TITLE_MISSING"}': 1,
        'push_dead_total{code="NO_TARGET"}': 1,
        'push_dead_total{code="UNREGISTERED"}': 1,
        'push_tokens_disabled_total{code="UNREGISTERED"}': 1,
        'push_invalid_total{code="TITLE_MISSING"}': 1,
        'push_invalid_total{code="NO_TARGET"}': 1,
        "push_claimed_total": 12,
        'push_due_to_accepted_seconds_count{priority="normal"}': 6,
        'push_insert_to_send_seconds_count{priority="normal"}': 7,
        "push_fcm_request_seconds_count": 10,
        "push_listening": 1,
        "push_listen_connections_total": 1,
        "push_in_flight_limit": known.max_in_flight,
        "push_quota_requests_per_second": 10_000,
        "push_quota_share_requests_per_second": (600_000 - 1_000) / 60,
        'push_token_refreshes_total{result="ok"}': 1,
    }


async def test_the_metrics_show_the_depth_of_the_queue(database: Database, rows: Rows) -> None:
    await rows.query(
        "insert into push_notifications (device_token, title, priority, status, claimed_by, next_attempt_at) "
        "select 'later', 't', case when n = 1 then 'high' else 'normal' end, "
        "case when n <= 4 then 'pending' else 'failed' end, 1, now() + interval '1 hour' "
        "from generate_series(1, 7) n"
    )
    async with (
        Emulator() as emulator,
        serving(settings_for(database.dsn, emulator)) as service,
    ):
        assert service.port is not None
        await shown(service.metrics, "push_queue_scheduled", 7)
        found = samples((await get(service.port, "/metrics"))[1])
    assert {name: value for name, value in found.items() if name.startswith("push_queue_")} == {
        'push_queue_depth{priority="high",status="failed"}': 0,
        'push_queue_depth{priority="high",status="pending"}': 1,
        'push_queue_depth{priority="high",status="processing"}': 0,
        'push_queue_depth{priority="normal",status="failed"}': 3,
        'push_queue_depth{priority="normal",status="pending"}': 3,
        'push_queue_depth{priority="normal",status="processing"}': 0,
        'push_queue_due{priority="high"}': 0,
        'push_queue_due{priority="normal"}': 0,
        'push_queue_oldest_due_seconds{priority="high"}': 0,
        'push_queue_oldest_due_seconds{priority="normal"}': 0,
        "push_queue_scheduled": 7,
        "push_queue_read_timestamp_seconds": found["push_queue_read_timestamp_seconds"],
    }
    assert abs(found["push_queue_read_timestamp_seconds"] - time.time()) < PATIENCE


async def test_promtool_accepts_the_metrics(database: Database, rows: Rows) -> None:
    promtool = tool("promtool")
    async with (
        Emulator() as emulator,
        serving(settings_for(database.dsn, emulator)) as service,
    ):
        assert service.port is not None
        for token in ("t", "dead-t", "bad token"):
            await rows.add(device_token=token, title="t")
        await rows.over()
        _, text = await get(service.port, "/metrics")
    done = await asyncio.to_thread(
        subprocess.run, [promtool, "check", "metrics"], input=text.encode(), capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
