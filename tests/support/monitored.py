"""Two listeners under the rules of deploy/, with real Prometheus and Alertmanager, and time that runs faster."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from aiohttp import web
from psycopg import sql

from listener.emulator import Emulator
from tests.support.monitoring import Server, alertmanager, prometheus
from tests.support.postgres import Database
from tests.support.prometheus_rules import DEPLOY, RULES, seconds
from tests.support.servers import closed_port
from tests.support.service import Program, connect, environment, program

SCALE = 10
"""By how much each duration of the rules and of both configurations is divided: for, keep_firing_for, windows, offsets,
intervals. Numbers stay: a push is old after 60 real seconds, and 5 s are late."""

PATIENCE = 240.0
"""Seconds after which an alert that is waited for will not come any more."""

JOB = "push-listener-public"
LISTEN_ROLE = "push_listener_live_test"
_TOKEN = "a-token-for-the-test"
_DURATION = re.compile(r"(?<![\w.])(\d+)([smhd])\b")


def scaled(duration: str) -> str:
    """A duration that is shorter by SCALE."""
    return f"{seconds(duration) * 1000 // SCALE}ms"


def scaled_expr(expr: str) -> str:
    """An expression whose windows and offsets are shorter by SCALE."""
    return _DURATION.sub(lambda found: scaled(found[0]), expr)


def scaled_rules(text: str) -> str:
    """A rule file whose durations are shorter by SCALE, and nothing else is changed."""
    content = yaml.safe_load(text)
    for group in content["groups"]:
        if "interval" in group:
            group["interval"] = scaled(group["interval"])
        for rule in group["rules"]:
            rule["expr"] = scaled_expr(rule["expr"])
            for key in ("for", "keep_firing_for"):
                if key in rule:
                    rule[key] = scaled(rule[key])
    return yaml.safe_dump(content, sort_keys=False)


def _scaled_tree(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _scaled_tree(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_scaled_tree(each) for each in node]
    return (
        scaled(node)
        if isinstance(node, str) and re.fullmatch(r"(\d+[smhd])+", node) and seconds(node)
        else node
    )


@dataclass
class Timeline:
    """What happened when, in seconds since the first entry."""

    entries: list[tuple[float, str]] = field(default_factory=list)

    def note(self, what: str) -> None:
        """It happened now."""
        self.entries.append((time.monotonic(), what))

    def __str__(self) -> str:
        start = self.entries[0][0]
        return "\n".join(f"{at - start:8.1f} s  {what}" for at, what in self.entries)


class Webhook:
    """What Alertmanager has sent, by receiver."""

    def __init__(self) -> None:
        self.received: list[tuple[str, str, dict[str, str]]] = []
        """Receiver, status and labels of each alert in each notification."""
        self._came = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        """A notification."""
        body = await request.json()
        for alert in body["alerts"]:
            self.received.append((request.match_info["receiver"], alert["status"], alert["labels"]))
        self._came.set()
        return web.Response()

    async def got(self, receiver: str, name: str, status: str) -> dict[str, str]:
        """The labels of the first such alert, once it has come."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for where, state, labels in self.received:
                    if (where, state, labels["alertname"]) == (receiver, status, name):
                        return labels
                self._came.clear()
                await self._came.wait()


@dataclass
class Monitored:
    """All that runs."""

    database: Database
    emulator: Emulator
    prometheus: Server
    alertmanager: Server
    webhook: Webhook
    timeline: Timeline
    ports: list[int]
    listeners: list[Program]
    start_listener: Callable[[int], Awaitable[Program]]

    async def alert(self, name: str, state: str, **labels: str) -> None:
        """Returns once Prometheus says that an alert is in this state: pending, firing, or inactive."""
        async with asyncio.timeout(PATIENCE):
            while not self._is(await self.prometheus.get("/api/v1/alerts"), name, state, labels):  # noqa: ASYNC110
                await asyncio.sleep(0.2)  # Prometheus tells nobody of a change
        self.timeline.note(f"{name} is {state}")

    @staticmethod
    def _is(answer: Any, name: str, state: str, labels: dict[str, str]) -> bool:
        wanted = {"alertname": name, **labels}
        states = {
            each["state"] for each in answer["data"]["alerts"] if wanted.items() <= each["labels"].items()
        }
        return not states if state == "inactive" else state in states

    async def called(self, name: str, status: str, receiver: str = "pager") -> dict[str, str]:
        """The labels of an alert, once Alertmanager has sent it to the receiver."""
        labels = await self.webhook.got(receiver, name, status)
        self.timeline.note(f"webhook {receiver}: {name} {status}")
        return labels

    async def value(self, query: str) -> list[Any]:
        """What an instant query returns now."""
        answer = await self.prometheus.get("/api/v1/query", query=query)
        found: list[Any] = answer["data"]["result"]
        return found

    async def shows(self, query: str) -> None:
        """Returns once an instant query has a result."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not await self.value(query):  # noqa: ASYNC110
                    await asyncio.sleep(0.2)  # as above
        except TimeoutError:
            pytest.fail(f"never had a result: {query}")


@asynccontextmanager
async def monitored(
    database: Database, place: Path, load: Callable[[str], Coroutine[Any, Any, None]] | None = None
) -> AsyncIterator[Monitored]:
    """Two listeners, a push five times a second, Prometheus, Alertmanager, and a webhook.

    Args:
        load: inserts pushes until it is cancelled, instead of the five a second.
    """
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(Emulator())
        webhook = Webhook()
        hook_port = await stack.enter_async_context(_served(webhook))
        ports = [closed_port(), closed_port()]
        notifier = await stack.enter_async_context(
            alertmanager(_alertmanager_configuration(place, hook_port), place / "alertmanager")
        )
        with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
            connection.execute(
                sql.SQL("create role {} login in role push_listener").format(sql.Identifier(LISTEN_ROLE))
            )

        async def start(port: int) -> Program:
            started = await stack.enter_async_context(
                program(
                    "run",
                    env=environment(
                        database.dsn,
                        emulator,
                        listen_database_url=database.dsn_as(LISTEN_ROLE),
                        port=str(port),
                        metrics_token=_TOKEN,
                        worker_name=f"listener-{port}",
                        queue_depth_interval="1",
                        retry_min_delay="1",
                        retry_max_delay="5",
                        fcm_ramp="0",
                        idle_probe_interval=f"{300 / SCALE}",
                    ),
                )
            )
            await started.port()
            return started

        listeners = [await start(port) for port in ports]
        watcher = await stack.enter_async_context(
            prometheus(_prometheus_configuration(place, ports, notifier), place / "prometheus")
        )
        inserting = asyncio.create_task((load or _insert)(database.dsn))
        try:
            yield Monitored(
                database, emulator, watcher, notifier, webhook, Timeline(), ports, listeners, start
            )
        finally:
            inserting.cancel()
            with suppress(asyncio.CancelledError):
                await inserting


async def _insert(dsn: str) -> None:
    async with await connect(dsn) as connection:
        number = 0
        while True:
            number += 1
            await connection.execute(
                "insert into push_notifications (device_token, title, priority) values (%s, 't', %s)",
                (f"phone-{number}", "high" if number % 2 else "normal"),
            )
            await asyncio.sleep(0.2)  # the rate of the load


@asynccontextmanager
async def _served(webhook: Webhook) -> AsyncIterator[int]:
    app = web.Application()
    app.add_routes([web.post("/{receiver}", webhook.take)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _alertmanager_configuration(place: Path, hook_port: int) -> Path:
    content = _scaled_tree(yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text()))
    for receiver in content["receivers"]:
        [hook] = receiver["webhook_configs"]
        hook["url"] = f"http://127.0.0.1:{hook_port}/{receiver['name']}"
    path = place / "alertmanager.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def _prometheus_configuration(place: Path, ports: list[int], notifier: Server) -> Path:
    for rules in RULES.glob("*.yml"):
        (place / rules.name).write_text(scaled_rules(rules.read_text()))
    token = place / "token"
    token.write_text(_TOKEN)
    content = _scaled_tree(yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text()))
    content["rule_files"] = [str(place / rules.name) for rules in RULES.glob("*.yml")]
    content["alerting"]["alertmanagers"] = [
        {"static_configs": [{"targets": [notifier.url.removeprefix("http://")]}]}
    ]
    [scrape] = [each for each in content["scrape_configs"] if each["job_name"] == JOB]
    scrape["scheme"] = "http"
    scrape["authorization"]["credentials_file"] = str(token)
    scrape["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
    content["scrape_configs"] = [scrape]
    path = place / "prometheus.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


Say = Callable[[str, Monitored], None]
"""Prints a timeline under a title."""
