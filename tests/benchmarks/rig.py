"""What the benchmarks have in common: the processes they start, what these cost, and how results are shown."""

from __future__ import annotations

import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import orjson
import psutil
from rich.console import Console
from rich.table import Table

from listener import migrate
from listener.embedded import EmbeddedPostgres
from listener.emulator.oauth import ServiceAccount

PROJECT = "bench-project"
POSTGRES = 18

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 120.0

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


class BenchmarkFailed(click.ClickException):
    """What was to be measured did not happen; the message says what."""


# --- processes -----------------------------------------------------------------------------------------


@contextmanager
def postgres() -> Iterator[EmbeddedPostgres]:
    """A private Postgres with the settings that it comes with: every commit reaches the disk."""
    with EmbeddedPostgres(version=POSTGRES) as server:
        yield server


def new_database(server: EmbeddedPostgres, name: str) -> str:
    """Creates a database with all migrations; returns its DSN, as superuser."""
    dsn = server.create_database(name)
    migrate.apply(dsn)
    return dsn


@contextmanager
def process(
    module: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """``python -m module`` until the block ends; then it gets SIGTERM.

    What it says on standard error is shown when it ends by a fault.
    """
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=_ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                _, said = child.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                _, said = child.communicate()
            if child.returncode not in (0, -signal.SIGTERM):
                errors.print(f"{module} ended with {child.returncode}:\n{said[-4000:]}", markup=False)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request at the sink."""

    at_ns: int
    push_id: str


@dataclass(frozen=True, slots=True)
class SinkClient:
    """The sink, seen from a benchmark. See ``tests.benchmarks.sink``."""

    url: str
    pid: int

    def count(self) -> int:
        """Sends since the last reset."""
        count: int = self._call("GET", "/count")["requests"]
        return count

    def report(self) -> list[Arrival]:
        """Sends since the last reset, in order of arrival."""
        report = self._call("GET", "/report")
        return [
            Arrival(at, push_id) for at, push_id in zip(report["arrived_ns"], report["push_ids"], strict=True)
        ]

    def reset(self) -> None:
        """Forgets what has arrived."""
        self._call("POST", "/reset")

    def _call(self, method: str, path: str) -> Any:
        request = urllib.request.Request(self.url + path, method=method)
        with _direct.open(request, timeout=_PATIENCE) as answer:
            return orjson.loads(answer.read())


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def sink(latency_ms: float = 0.0) -> Iterator[SinkClient]:
    """The sink as a process of its own."""
    with process("tests.benchmarks.sink", "--latency-ms", str(latency_ms)) as child:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        if not url:
            raise BenchmarkFailed("the sink did not start")
        yield SinkClient(url, child.pid)


def listener_environment(dsn: str, sink_url: str, **settings: str) -> dict[str, str]:
    """The environment for ``push-listener run`` on a database and the sink."""
    key = ServiceAccount(PROJECT).key(sink_url)
    return {
        "DATABASE_URL": dsn,
        "LISTEN_DATABASE_URL": "",
        "FCM_ENDPOINT": sink_url,
        "FCM_PROJECT_ID": PROJECT,
        "FCM_SERVICE_ACCOUNT_JSON": orjson.dumps(key).decode(),
        "HOST": "127.0.0.1",
        "PORT": "0",
        "METRICS_TOKEN": "",
        "LOG_LEVEL": "warning",
        "NO_PROXY": urlsplit(sink_url).hostname or "",
        **settings,
    }


def until(happened: Callable[[], bool], what: str, *, every: float = 0.01, within: float = _PATIENCE) -> None:
    """Returns when ``happened()``. Raises BenchmarkFailed when it does not in time."""
    deadline = time.monotonic() + within
    while not happened():
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"after {within:g} s: {what}")
        time.sleep(every)


# --- cost ----------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """User and system time of one process, all threads."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def tree_cpu_seconds(pid: int) -> float:
    """The same of a process and its descendants, those that have ended included."""
    root = psutil.Process(pid)
    total = 0.0
    for one in (root, *root.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def peak_rss(pid: int) -> int:
    """Bytes of memory the process had at its largest."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkFailed("this system does not tell a process' peak memory")


# --- numbers -------------------------------------------------------------------------------------------


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def machine() -> str:
    """What the figures were measured on, and how busy it is, in a line."""
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    return f"{os.cpu_count()} cores, load {load}, Python {platform.python_version()}, Postgres {POSTGRES}"


def repeat(runs: int, measure: Callable[[], dict[str, float]]) -> list[dict[str, float]]:
    """Measures so many times; with each run's figures comes how busy the machine was before it."""
    errors.print(machine())
    figures = []
    for _ in range(runs):
        load = os.getloadavg()[0]
        figures.append({**measure(), "load": load})
    return figures


def show(
    title: str, runs: Sequence[Mapping[str, float]], rows: Sequence[tuple[str, str, str]], as_json: bool
) -> None:
    """Prints every run and the median of all.

    ``rows``: the key of a figure, what it is, and how it is written, as in ``format(figure, ...)``.
    """
    rows = [*rows, ("load", "load of the machine before, 1 min", ".2f")]
    median = {key: statistics.median(run[key] for run in runs) for key, _, _ in rows}
    if as_json:
        click.echo(orjson.dumps({"runs": list(runs), "median": median}, option=orjson.OPT_INDENT_2))
        return
    table = Table("", *(f"run {number}" for number in range(1, len(runs) + 1)), "median", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for key, what, form in rows:
        table.add_row(what, *(format(run[key], form) for run in runs), f"[bold]{median[key]:{form}}[/]")
    console.print(table)
