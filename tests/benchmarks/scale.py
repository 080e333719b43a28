"""What several processes on one database cost it: with a backlog, with a push now and then, and while idle.

    python -m tests.benchmarks.scale --processes 1 --processes 8 --rows 60000 --idle-seconds 60

So many processes wait, each on the bell; then a backlog is there all at once, and they drain it. After that one push
comes each second, then none. Autovacuum is off, lest it come in one run and not in the next: what a VACUUM takes
after the backlog is measured by itself. Every statement and its duration is read from the log of Postgres.
"""

from __future__ import annotations

import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import psycopg
from rich.table import Table

from listener.demo.embedded import EmbeddedPostgres
from listener.postgres.locks import CHANNEL, LIVENESS_CLASS
from tests.benchmarks import drain, queues, rig
from tests.benchmarks.options import Options, setting
from tests.benchmarks.report import Depends, Line, ratios

_COUNTS = (1, 2, 4, 8)
_ROWS = 60_000
_DATABASE = "scale"
_LISTENER = "push-listener"
"""What the names begin with that its connections give themselves."""
_TRANSACTION = 1_000
"""Rows that are inserted in one."""
_REST_S = 6.0
"""After which nobody minds the last push any more."""
_LOOK_S = 0.05
_SHORT_MS = 1.0

# Its further lines begin with a tab.
_STATEMENT = re.compile(
    r"^(?P<who>[^|\n]*)\|LOG:  duration: (?P<ms>[0-9.]+) ms  (?:statement|execute [^:]*): "
    r"(?P<statement>.*\n(?:\t.*\n)*)",
    re.MULTILINE,
)
_KINDS = {"with early as": "claim", "with result as": "settle"}

_LIVE = "select count(*) from pg_locks where locktype = 'advisory' and classid = %s and granted"
_SHARES = "select count(*) from push_notifications group by claimed_by"
_ACTIVITY = """
select coalesce(wait_event_type || ' ' || wait_event, 'running'), state = 'active', count(*)
  from pg_stat_activity where starts_with(application_name, %s) group by 1, 2
"""

FIGURES = {
    "pushes_per_s": ("pushes a second, all", ",.0f"),
    "fairness": ("least of what a process has sent, against the most", ".2f"),
    "worker_cpu_ms": ("CPU-ms for 1,000 pushes: all processes", ".0f"),
    "postgres_cpu_ms": ("CPU-ms for 1,000 pushes: Postgres", ".0f"),
    "vacuum_cpu_ms": ("CPU-ms for 1,000 pushes: VACUUM afterwards", ".1f"),
    "wal_bytes": ("WAL bytes a push: claim, settle, log", ",.0f"),
    "dead_versions": ("dead row versions a push", ".2f"),
    "per_claim": ("pushes a claim that took 1 ms or more", ".0f"),
    "claim_ms": ("such a claim, median, ms", ".1f"),
    "looks_per_s": ("claims below 1 ms, a second, each process", ".1f"),
    "statements": ("statements for 1,000 pushes", ".1f"),
    "settle_ms": ("settle, median, ms", ".1f"),
    "connections": ("connections at most", ".0f"),
    "alone_statements": ("statements for each push, one push a second", ".1f"),
    "alone_cpu_ms": ("CPU-ms of Postgres for each, one push a second", ".1f"),
    "idle_queries": ("queries a minute of an idle process", ".2f"),
}


@dataclass(slots=True)
class Seen:
    """What listeners' connections were seen to do."""

    looks: int = 0
    doing: Counter[str] = field(default_factory=Counter)
    """By what it waits for, if anything: connections with a statement under way, summed over the looks."""
    connections: int = 0
    """At most, at one time."""
    cpu: float = 0.0
    """CPU-seconds that the looking has cost Postgres."""


@dataclass(frozen=True, slots=True)
class Found:
    figures: Mapping[str, float]
    doing: Mapping[str, float]
    """Connections with a statement under way, on average, by what they wait for."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One line of the log."""

    kind: str
    ms: float


def statements(said: str) -> Iterator[Statement]:
    """What listeners have executed, as the log of Postgres tells."""
    for match in _STATEMENT.finditer(said):
        if match["who"].startswith(_LISTENER):
            text = match["statement"].lstrip()
            kind = next((kind for start, kind in _KINDS.items() if text.startswith(start)), "other")
            yield Statement(kind, float(match["ms"]))


@contextmanager
def _watched(server: EmbeddedPostgres) -> Iterator[Seen]:
    """Looks again and again at what connections do, until the block ends."""
    seen, over = Seen(), threading.Event()

    def look() -> None:
        with psycopg.connect(server.uri, autocommit=True) as conn:
            while not over.wait(_LOOK_S):
                found = conn.execute(_ACTIVITY, (_LISTENER,)).fetchall()
                seen.looks += 1
                seen.doing.update({what: count for what, active, count in found if active})
                seen.connections = max(seen.connections, sum(count for *_, count in found))
            seen.cpu = rig.cpu_seconds(conn.info.backend_pid)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


class _Log:
    """The log of a server, from where it was last read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = path.stat().st_size

    def since(self) -> list[Statement]:
        with self._path.open("rb") as log:
            log.seek(self._read)
            said = log.read()
        self._read += len(said)
        return [*statements(said.decode(errors="replace"))]


def measure(
    processes: int,
    rows: int,
    latency_ms: float,
    settings: Mapping[str, str],
    *,
    alone: int = 20,
    idle_s: float = 0.0,
) -> Found:
    """One run with so many processes, in a new Postgres; ``alone``: pushes that come one by one."""
    with ExitStack() as stack:
        server = stack.enter_context(
            rig.postgres(
                autovacuum="off",
                log_min_duration_statement="0",
                log_parameter_max_length="0",
                log_line_prefix="%a|",
            )
        )
        sink = stack.enter_context(rig.sink(latency_ms, connections=processes * rig.CONNECTIONS))
        queue = queues.install(queues.LISTENER, server, _DATABASE)
        conn = stack.enter_context(queue.connect())
        with ExitStack() as working:
            workers = [working.enter_context(queue.worker(sink, settings)) for _ in range(processes)]
            pids = [worker.pid for worker in workers]
            rig.until(lambda: _number(conn, _LIVE, LIVENESS_CLASS) == processes, "not every process is there")
            time.sleep(_REST_S)
            _load(conn, rows)
            if sink.count():
                raise rig.BenchmarkFailed("the backlog is being sent before all of it is there")

            log, before = _Log(server.log_file), rig.written(conn)
            cpu, postgres_cpu = -sum(map(rig.cpu_seconds, pids)), -rig.tree_cpu_seconds(server.pid)
            with _watched(server) as seen:
                conn.execute(f"notify {CHANNEL}".encode())
                rig.until(lambda: sink.count() >= rows, "not every push has come to the sink", every=0.05)
                rig.until(lambda: queue.pending(conn) == 0, "not every push has been settled", every=0.05)
            cpu += sum(map(rig.cpu_seconds, pids))
            # The connection that looked has ended: what it used is in the sum.
            postgres_cpu += rig.tree_cpu_seconds(server.pid) - seen.cpu
            wal = (rig.written(conn) - before).wal_bytes
            done = log.since()
            shares = [count for (count,) in conn.execute(_SHARES.encode())]
            arrivals = sink.report()
            if not len({one.push_id for one in arrivals}) == len(arrivals) == rows:
                raise rig.BenchmarkFailed(f"{rows} pushes became {len(arrivals)} requests")

            vacuum_cpu = -rig.cpu_seconds(conn.info.backend_pid)
            conn.execute("vacuum (parallel 0) push_notifications, push_delivery_logs")
            vacuum_cpu += rig.cpu_seconds(conn.info.backend_pid)

            sink.answer_after(0)
            time.sleep(_REST_S)
            log.since()
            alone_cpu = -rig.tree_cpu_seconds(server.pid)
            for number in range(1, alone + 1):
                conn.execute(drain.LOAD.format(rows=1).encode())
                time.sleep(1)
                rig.until(lambda n=number: sink.count() >= rows + n, "a push never came to the sink")  # type: ignore[misc]
            alone_cpu += rig.tree_cpu_seconds(server.pid)
            one_by_one = log.since()

            time.sleep(_REST_S if idle_s else 0)
            log.since()
            time.sleep(idle_s)
            idle = log.since()
        versions = (rig.written(conn) - before).versions

    def times(kind: str) -> list[float]:
        return [one.ms for one in done if one.kind == kind]

    claims = [ms for ms in times("claim") if ms >= _SHORT_MS]
    if not (claims and times("settle")):
        raise rig.BenchmarkFailed("no claim or no settle is found in the log of Postgres")
    seconds = (arrivals[-1].at_ns - arrivals[0].at_ns) / 1e9
    # What has no room for normal pushes looks for urgent ones, in vain.
    looks = len(times("claim")) - len(claims)
    figures = {
        "pushes_per_s": rows / seconds,
        "fairness": min(shares) / max(shares) if len(shares) == processes else 0.0,
        "worker_cpu_ms": cpu * 1e6 / rows,
        "postgres_cpu_ms": postgres_cpu * 1e6 / rows,
        "vacuum_cpu_ms": vacuum_cpu * 1e6 / rows,
        "wal_bytes": wal / rows,
        "dead_versions": versions / (rows + alone),
        "per_claim": rows / len(claims),
        "looks_per_s": looks / processes / seconds,
        "statements": len(done) * 1e3 / rows,
        "claim_ms": statistics.median(claims),
        "settle_ms": statistics.median(times("settle")),
        "connections": float(seen.connections),
        "alone_statements": len(one_by_one) / alone,
        "alone_cpu_ms": alone_cpu * 1e3 / alone,
    }
    if idle_s:
        figures["idle_queries"] = len(idle) / processes / (idle_s / 60)
    return Found(figures, {what: count / max(seen.looks, 1) for what, count in seen.doing.most_common()})


def _load(conn: psycopg.Connection, rows: int) -> None:
    """The backlog, without a bell."""
    conn.execute("checkpoint")
    conn.execute("set session_replication_role = replica")
    for _ in range(rows // _TRANSACTION):
        conn.execute(drain.LOAD.format(rows=_TRANSACTION).encode())
    conn.execute("reset session_replication_role")
    conn.execute("analyze")


def _number(conn: psycopg.Connection, statement: str, *values: object) -> int:
    row = conn.execute(statement.encode(), values).fetchone()
    assert row is not None
    return int(row[0])


def part(options: Options) -> list[Line]:
    """What a push costs with several processes, against one in the same round."""
    counts, rows = ((1, 4), _ROWS // 3) if options.quick else (_COUNTS, _ROWS)
    found: dict[int, list[Mapping[str, float]]] = {count: [] for count in counts}
    for run in range(options.runs):
        for count in counts:
            rig.say(f"scale: {count} processes, run {run + 1}")
            found[count].append(measure(count, rows, options.latency_ms, options.settings, alone=1).figures)

    def samples(count: int, key: str) -> list[float]:
        return [run[key] for run in found[count]]

    lines = []
    for count in counts:
        lines += [
            Line(
                f"{count} processes: pushes a second",
                "{:,.0f}",
                samples(count, "pushes_per_s"),
                depends=Depends.CPU,
                more_is_better=True,
            ),
            Line(
                f"{count} processes: Postgres for 1,000 pushes",
                "{:.0f} ms",
                samples(count, "postgres_cpu_ms"),
                depends=Depends.CPU,
            ),
        ]
        if count > 1:
            against = ratios(samples(count, "postgres_cpu_ms"), samples(1, "postgres_cpu_ms"))
            lines += [
                Line(f"{count} processes: Postgres, against one process", "{:.2f}", against),
                Line(
                    f"{count} processes: least against most that one has sent",
                    "{:.2f}",
                    samples(count, "fairness"),
                    more_is_better=True,
                ),
            ]
    return lines


def _show(found: Mapping[int, Sequence[Found]], title: str) -> None:
    table = Table("", *(f"{count} processes" for count in found), title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for key, (what, form) in FIGURES.items():
        cells = [[run.figures[key] for run in runs if key in run.figures] for runs in found.values()]
        table.add_row(what, *(" / ".join(format(one, form) for one in cell) for cell in cells))
    table.add_section()
    events = dict.fromkeys(event for runs in found.values() for run in runs for event in run.doing)
    for event in events:
        means = [statistics.mean(run.doing.get(event, 0.0) for run in runs) for runs in found.values()]
        if max(means) >= 0.01:
            table.add_row(f"connections at it: {event}", *(f"{mean:.2f}" for mean in means))
    rig.console.print(table)


@click.command()
@click.option("--processes", "counts", multiple=True, default=_COUNTS, type=click.IntRange(1, 15))
@click.option("--rows", default=_ROWS, show_default=True, type=click.IntRange(_TRANSACTION))
@click.option(
    "--latency-ms", default=50.0, show_default=True, type=click.FloatRange(0), help="Of the sink's answers."
)
@click.option("--alone", default=20, show_default=True, type=click.IntRange(1), help="Pushes one by one.")
@click.option("--idle-seconds", default=0.0, show_default=True, type=click.FloatRange(0))
@setting
@click.option("--runs", default=1, show_default=True, type=click.IntRange(1))
def main(
    counts: tuple[int, ...],
    rows: int,
    latency_ms: float,
    alone: int,
    idle_seconds: float,
    settings: dict[str, str],
    runs: int,
) -> None:
    """Drain a backlog with several processes, in turns: what each push costs, and what they wait for."""
    rows -= rows % _TRANSACTION
    found: dict[int, list[Found]] = {count: [] for count in counts}
    title = f"{rows:,} pushes, answered after {latency_ms:g} ms: {rig.machine()}"
    for run in range(runs):
        for count in counts if run % 2 == 0 else counts[::-1]:
            rig.say(f"{count} processes, run {run + 1}")
            found[count].append(measure(count, rows, latency_ms, settings, alone=alone, idle_s=idle_seconds))
    _show(found, title)


if __name__ == "__main__":
    main()
