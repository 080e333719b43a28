"""What the benchmarks have in common: the processes they start, what these cost, and where rows come from."""

from __future__ import annotations

import os
import platform
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import orjson
import psutil
import psycopg
from rich.console import Console
from rich.table import Table

from listener.config import Settings
from listener.demo.embedded import EmbeddedPostgres, packaged_binaries
from listener.emulator.oauth import ServiceAccount
from listener.schema import migrate

PROJECT = "bench-project"
POSTGRES = 18

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 120.0
_LEAVING = 30.0
CONNECTIONS: int = Settings.model_fields["max_in_flight"].default
"""Of a sender to the sink, at most."""
_FILES = 100
"""What a process has open besides."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
errors = Console(stderr=True, highlight=False)


class BenchmarkFailed(click.ClickException):
    """What was to be measured did not happen; the message says what."""


class OverTooSoon(BenchmarkFailed):
    """Everything had been sent before the measurement could begin."""


def say(what: str) -> None:
    """Tells whoever waits what is being done."""
    errors.print(what, markup=False)


# --- processes -----------------------------------------------------------------------------------------


@contextmanager
def postgres(**settings: str) -> Iterator[EmbeddedPostgres]:
    """A private Postgres with the settings that it comes with: every commit reaches the disk."""
    with EmbeddedPostgres(version=POSTGRES, settings=settings) as server:
        yield server


def slow_disk(flush_ms: float) -> dict[str, str]:
    """Settings of a Postgres with which each flush of the WAL takes so much longer, as on a slow disk."""
    return {"commit_delay": str(round(1000 * flush_ms)), "commit_siblings": "0"} if flush_ms else {}


def new_database(server: EmbeddedPostgres, name: str) -> str:
    """Creates a database with all migrations; returns its DSN, as superuser."""
    dsn = server.create_database(name)
    migrate.apply(dsn)
    return dsn


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """What a process may have of this one's environment: neither settings of push-listener nor a proxy."""
    return {
        name: value
        for name, value in environment.items()
        if name.lower() not in Settings.model_fields and not name.lower().endswith("_proxy")
    }


def allow_open_files(wanted: int) -> None:
    """Raises the limit for this process, and for those that it starts, as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise BenchmarkFailed(f"the hard limit of open files (ulimit -Hn) is {hard}, {wanted} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def program(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process until the block ends; then it gets SIGTERM, and SIGKILL if that is not enough.

    What it says on standard error is shown when it ends by a fault.
    """
    with (
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**inherited(os.environ), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        ) as child,
    ):
        try:
            yield child
        finally:
            ended = child.poll()
            child.send_signal(signal.SIGTERM)
            try:
                child.communicate(timeout=_LEAVING)
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()
            if ended not in (None, 0, -signal.SIGKILL) or child.returncode > 0:
                said.seek(0)
                say(f"{' '.join(command[1:4])} ended with {child.returncode}:\n{said.read()[-4000:]}")


def module(
    name: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> AbstractContextManager[subprocess.Popen[str]]:
    """``python -m name`` until the block ends."""
    return program([sys.executable, "-m", name, *arguments], environment=environment)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request at the sink."""

    at_ns: int
    push_id: str


@dataclass(frozen=True, slots=True)
class Sink:
    """The sink, seen from a benchmark. See ``tests.benchmarks.sink``."""

    url: str
    """For tokens, and for what a benchmark asks."""
    endpoint: str
    """Where pushes go; with TLS another port."""
    pid: int
    trust: Mapping[str, str] = field(default_factory=dict)
    """The environment of a client that is to trust it."""

    @property
    def sends(self) -> str:
        """The URL to POST a push to."""
        return f"{self.endpoint}/v1/projects/{PROJECT}/messages:send"

    def count(self) -> int:
        """Sends since the last reset."""
        count: int = self._call("GET", "/count")["requests"]
        return count

    def report(self, first: int = 0) -> list[Arrival]:
        """Sends since the last reset, in order of arrival, without the ``first`` so many."""
        report = self._call("GET", f"/report?first={first}")
        return [
            Arrival(at, push_id) for at, push_id in zip(report["arrived_ns"], report["push_ids"], strict=True)
        ]

    def reset(self) -> None:
        """Forgets what has arrived."""
        self._call("POST", "/reset")

    def answer_after(self, latency_ms: float) -> None:
        """From now on. Who waits for an answer already may wait until then."""
        self._call("POST", f"/latency?ms={latency_ms:g}")

    def _call(self, method: str, path: str) -> Any:
        request = urllib.request.Request(self.url + path, method=method)
        try:
            with _direct.open(request, timeout=_PATIENCE) as answer:
                return orjson.loads(answer.read())
        except OSError as error:
            raise BenchmarkFailed(f"the sink does not answer {path}: {error}") from None


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def sink(
    latency_ms: float = 0.0, *, tls: bool = False, connections: int = CONNECTIONS, wired: bool = False
) -> Iterator[Sink]:
    """The sink as a process of its own, for so many connections; ``wired``: at the far end of a ``wire``."""
    allow_open_files(connections + _FILES)
    arguments = [
        "--latency-ms",
        f"{latency_ms:g}",
        *(["--tls"] if tls else []),
        *(["--wire"] if wired else []),
    ]
    with module("tests.benchmarks.sink", *arguments) as child:
        assert child.stdout is not None
        match child.stdout.readline().split():
            case [url]:
                yield Sink(url, url, child.pid)
            case [url, secure, certificate]:
                yield Sink(url, secure, child.pid, {"SSL_CERT_FILE": certificate})
            case _:
                raise BenchmarkFailed("the sink did not start")


@contextmanager
def wire(rtt_ms: float) -> Iterator[None]:
    """A wire on which there and back takes so long. See ``tests.benchmarks.wire``."""
    with module("tests.benchmarks.wire", "--rtt-ms", f"{rtt_ms:g}") as child:
        assert child.stdout is not None
        if not child.stdout.readline():
            raise BenchmarkFailed("there is no wire: it needs Linux and the right to make network devices")
        yield


def listener_environment(dsn: str, sink: Sink, **settings: str) -> dict[str, str]:
    """The environment for ``push-listener run`` on a database and the sink."""
    key = ServiceAccount(PROJECT).key(sink.url)
    return {
        "DATABASE_URL": dsn,
        "LISTEN_DATABASE_URL": "",
        "FCM_ENDPOINT": sink.endpoint,
        "FCM_PROJECT_ID": PROJECT,
        "FCM_SERVICE_ACCOUNT_JSON": orjson.dumps(key).decode(),
        # What FCM lets through is not what is measured.
        "FCM_QUOTA": "1000000000",
        "FCM_RAMP": "0",
        "HOST": "127.0.0.1",
        "PORT": "0",
        "METRICS_TOKEN": "",
        "LOG_LEVEL": "warning",
        "WORKER_NAME": "bench",
        **sink.trust,
        **settings,
    }


def until(
    happened: Callable[[], bool],
    what: str,
    *,
    every: float = 0.01,
    within: float = _PATIENCE,
    by: subprocess.Popen[str] | None = None,
) -> None:
    """Returns when ``happened()``. Raises BenchmarkFailed when it does not in time, or when ``by`` has ended."""
    deadline = time.monotonic() + within
    while not happened():
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"after {within:g} s: {what}")
        if by is not None and by.poll() is not None:
            raise BenchmarkFailed(f"{what}: the process has ended with {by.returncode}")
        time.sleep(every)


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


# --- writers -------------------------------------------------------------------------------------------

_RATE = re.compile(r"^tps = ([0-9.]+) \(without", re.MULTILINE)
_FAILED = re.compile(r"^number of failed transactions: ([0-9]+)", re.MULTILINE)


def pgbench(
    dsn: str,
    statement: str,
    *,
    clients: int,
    seconds: int | None = None,
    each: int | None = None,
    rate: float | None = None,
    durable: bool = True,
    log: Path | None = None,
) -> float:
    """Runs a statement again and again, each time a transaction of its own; returns how many a second.

    ``:n`` in it is a random number, and ``:k`` counts the transactions of a client, from 1 on. For so many ``seconds``,
    or ``each`` of the clients so many times; as fast as it goes, or at a ``rate`` for all clients together. Without
    ``durable`` a commit does not wait for the disk. With ``log`` pgbench logs each transaction to files whose names
    begin so.
    """
    command = [str(packaged_binaries(POSTGRES) / "pgbench"), "-n", "-M", "prepared", "-c", str(clients)]
    command += ["-T", str(seconds)] if seconds is not None else ["-t", str(each)]
    command += ["-R", f"{rate:g}"] if rate is not None else []
    command += ["-l", f"--log-prefix={log}"] if log is not None else []
    options = {} if durable else {"PGOPTIONS": "-c synchronous_commit=off"}
    done = subprocess.run(
        [*command, "-D", "k=0", "-f", "/dev/stdin", dsn],
        input=f"\\set n random(1, 1000000000)\n\\set k :k + 1\n{statement};\n",
        env={**os.environ, **options},
        capture_output=True,
        text=True,
    )
    found, failed = _RATE.search(done.stdout), _FAILED.search(done.stdout)
    if done.returncode != 0 or found is None or failed is None or failed[1] != "0":
        raise BenchmarkFailed(f"pgbench ended with {done.returncode}:\n{done.stdout}\n{done.stderr[-2000:]}")
    return float(found[1])


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


def rss(pid: int) -> int:
    """Bytes of memory that the process has now."""
    return int(psutil.Process(pid).memory_info().rss)


def peak_rss(pid: int) -> int:
    """Bytes of memory the process had at its largest."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkFailed("this system does not tell a process' peak memory")


@dataclass(frozen=True, slots=True)
class Written:
    """What a database has written so far."""

    wal_bytes: int
    versions: int
    """Row versions that are dead, or have been: one for each update and each delete."""

    def __sub__(self, earlier: Written) -> Written:
        return Written(self.wal_bytes - earlier.wal_bytes, self.versions - earlier.versions)


def is_alone(conn: psycopg.Connection) -> bool:
    """Whether no other client has a session in the database.

    A session reports its row versions to the statistics when it ends.
    """
    row = conn.execute(
        "select not exists (select from pg_stat_activity where datname = current_database() "
        "and backend_type = 'client backend' and pid <> pg_backend_pid())"
    ).fetchone()
    return row == (True,)


def written(conn: psycopg.Connection) -> Written:
    """Now, by connections that have been closed: others may tell of row versions seconds later."""
    row = conn.execute(
        "select pg_current_wal_insert_lsn() - '0/0', "
        "(select coalesce(sum(n_tup_upd + n_tup_del), 0) from pg_stat_user_tables)"
    ).fetchone()
    assert row is not None
    return Written(int(row[0]), int(row[1]))
