"""What each transport costs beside the default, over TLS from cold: the same backlog, sent by each in turn.

    python -m tests.benchmarks.transports --rows 20000 --runs 5

Each run starts a new process, so its figures include the handshakes. Ratios are taken round by round.
"""

from __future__ import annotations

import statistics
from typing import get_args

import click
from rich.table import Table

from listener.fcm.transports.choose import TransportName
from tests.benchmarks import drain, queues, rig
from tests.benchmarks.options import setting

DEFAULT = "http1"
FIGURES = {
    "worker_cpu_ms": "CPU-milliseconds for 1,000 pushes: process",
    "seconds": "seconds, first to last request",
    "peak_rss_mb": "peak memory of the process, MB",
}


def measure(rows: int, latency_ms: float, tls: bool, settings: dict[str, str]) -> dict[str, dict[str, float]]:
    """One round: the figures of each transport."""
    found = {}
    for name in get_args(TransportName):
        rig.say(f"draining by {name}")
        found[name] = drain.measure(
            queues.LISTENER, rows, latency_ms, tls=tls, settings={**settings, "TRANSPORT": name}
        )
    return found


@click.command()
@click.option("--rows", default=20_000, show_default=True, type=click.IntRange(8))
@click.option("--latency-ms", default=50.0, show_default=True, type=click.FloatRange(0), help="Of FCM.")
@click.option("--tls/--no-tls", default=True, show_default=True)
@setting
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1))
def main(rows: int, latency_ms: float, tls: bool, settings: dict[str, str], runs: int) -> None:
    """Drain a backlog by each transport in turn; each figure as a ratio to the default's in the same round."""
    rounds = [measure(rows, latency_ms, tls, settings) for _ in range(runs)]
    others = [name for name in get_args(TransportName) if name != DEFAULT]
    table = Table(
        f"ratio to {DEFAULT}: median (least to most)",
        *others,
        DEFAULT,
        title=f"{rows:,} pushes{' over TLS' if tls else ''}, answered after {latency_ms:g} ms, {runs} runs",
    )
    for key, what in FIGURES.items():
        ratios = {name: [each[name][key] / each[DEFAULT][key] for each in rounds] for name in others}
        table.add_row(
            what,
            *(
                f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
                for each in ratios.values()
            ),
            f"{statistics.median(each[DEFAULT][key] for each in rounds):.3g}",
        )
    rig.console.print(rig.machine())
    rig.console.print(table)


if __name__ == "__main__":
    main()
