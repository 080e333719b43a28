"""What each transport costs beside the default, over TLS from cold: the same pushes, sent by each in turn.

    python -m tests.benchmarks.transports --rtt-ms 20 --rtt-ms 80 --rows 1000 --rows 10000 --runs 3

Each run starts a new process, which has no connections when the pushes are committed, all in one transaction. While
they are sent, others of high priority are inserted one by one. Ratios are taken round by round.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from contextlib import nullcontext
from typing import get_args

import click
import psycopg
from rich.table import Table

from listener.fcm.transports.choose import TransportName
from listener.postgres.locks import LIVENESS_CLASS
from tests.benchmarks import drain, queues, rig
from tests.benchmarks.options import setting

FIGURES = {
    "seconds": "seconds, commit to last answer",
    "worker_cpu_us": "CPU-microseconds a push: process",
    "sink_cpu_us": "CPU-microseconds a push: sink",
    "peak_rss_mb": "peak memory of the process, MB",
    "high_p50_ms": "high priority, insert to request, p50, ms",
    "high_most_ms": "high priority, insert to request, most, ms",
}

_LIVES = f"select count(*) from pg_locks where locktype = 'advisory' and classid = {LIVENESS_CLASS}"
_SETTLE_DOWN_S = 1.0
"""What the process does at its start is over after so long."""
_HIGH_EVERY_S = 0.05
_PATIENCE_S = 900.0
_HIGH = """
insert into push_notifications (device_token, title, body, priority) values ('high', 'Now', 'At once', 'high')
  returning id::text
"""


def measure_one(
    name: str, rows: int, rtt_ms: float, latency_ms: float, tls: bool, settings: dict[str, str]
) -> dict[str, float]:
    """The figures of one transport, in a new Postgres."""
    with (
        rig.postgres() as server,
        rig.wire(rtt_ms) if rtt_ms else nullcontext(),
        rig.sink(latency_ms, tls=tls, wired=rtt_ms > 0) as sink,
    ):
        queue = queues.install(queues.LISTENER, server, "cold")
        with queue.connect() as conn, queue.worker(sink, {**settings, "TRANSPORT": name}) as worker:
            rig.until(
                lambda: conn.execute(_LIVES).fetchone() != (0,), "the process does not start", by=worker
            )
            time.sleep(_SETTLE_DOWN_S)
            cpu, sink_cpu = -rig.cpu_seconds(worker.pid), -rig.cpu_seconds(sink.pid)
            conn.execute(drain.LOAD.format(rows=rows))
            committed = time.time_ns()
            high = _send_high(conn, sink, rows, worker)
            rows += len(high)
            rig.until(lambda: sink.count() >= rows, "not every push has come to the sink", by=worker)
            rig.until(lambda: queue.pending(conn) == 0, "not every push has been settled", within=_PATIENCE_S)
            cpu += rig.cpu_seconds(worker.pid)
            sink_cpu += rig.cpu_seconds(sink.pid)
            peak = rig.peak_rss(worker.pid)
        arrivals = sink.report()
    if len({one.push_id for one in arrivals}) != rows:
        raise rig.BenchmarkFailed(f"{rows} pushes became {len(arrivals)} requests")
    last = max(one.at_ns for one in arrivals if one.push_id not in high)
    waited = [(one.at_ns - high[one.push_id]) / 1e6 for one in arrivals if one.push_id in high]
    return {
        "seconds": (last - committed) / 1e9 + (rtt_ms / 2 + latency_ms) / 1e3,
        "worker_cpu_us": cpu * 1e6 / rows,
        "sink_cpu_us": sink_cpu * 1e6 / rows,
        "peak_rss_mb": peak / 1e6,
        "high_p50_ms": statistics.median(waited),
        "high_most_ms": max(waited),
    }


def _send_high(
    conn: psycopg.Connection, sink: rig.Sink, rows: int, worker: subprocess.Popen[str]
) -> dict[str, int]:
    """Inserts pushes until the others have come to the sink; returns when each was about to be inserted."""
    inserted: dict[str, int] = {}

    def one_more() -> bool:
        before = time.time_ns()
        row = conn.execute(_HIGH).fetchone()
        assert row is not None
        inserted[row[0]] = before
        return sink.count() >= rows

    rig.until(
        one_more, "not every push has come to the sink", every=_HIGH_EVERY_S, within=_PATIENCE_S, by=worker
    )
    return inserted


@click.command()
@click.option("--rows", "sizes", default=[10_000], multiple=True, show_default=True, type=click.IntRange(1))
@click.option(
    "--rtt-ms",
    "rtts",
    default=[0.0],
    multiple=True,
    show_default=True,
    type=click.FloatRange(0),
    help="On the wire.",
)
@click.option("--latency-ms", default=50.0, show_default=True, type=click.FloatRange(0), help="Of FCM.")
@click.option("--tls/--no-tls", default=True, show_default=True)
@click.option("--transport", "names", default=get_args(TransportName), multiple=True, show_default=True)
@setting
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
def main(
    sizes: list[int],
    rtts: list[float],
    latency_ms: float,
    tls: bool,
    names: list[str],
    settings: dict[str, str],
    runs: int,
) -> None:
    """Send pushes by each transport in turn; each figure as it is, and as a ratio to the first's in the same round."""
    for rtt_ms in rtts:
        for rows in sizes:
            rounds = []
            for number in range(1, runs + 1):
                found = {}
                for name in names:
                    rig.say(f"{rows:,} pushes by {name}, round trip {rtt_ms:g} ms, run {number}")
                    found[name] = measure_one(name, rows, rtt_ms, latency_ms, tls, settings)
                rounds.append(found)
            _show(rounds, f"{rows:,} pushes{' over TLS' if tls else ''}, round trip {rtt_ms:g} ms")


def _show(rounds: list[dict[str, dict[str, float]]], title: str) -> None:
    first, *others = rounds[0]
    table = Table("median (ratio: least to most)", first, *others, title=f"{title}, {len(rounds)} runs")
    for key, what in FIGURES.items():
        cells = [f"{statistics.median(each[first][key] for each in rounds):.4g}"]
        for name in others:
            ratios = [each[name][key] / each[first][key] for each in rounds]
            median = statistics.median(each[name][key] for each in rounds)
            cells.append(
                f"{median:.4g} ({statistics.median(ratios):.2f}: {min(ratios):.2f} to {max(ratios):.2f})"
            )
        table.add_row(what, *cells)
    rig.console.print(rig.machine())
    rig.console.print(table)


if __name__ == "__main__":
    main()
