"""How soon others take over: a worker killed, a LISTEN connection lost. push-listener side by side with the peers.

    python -m tests.benchmarks.takeover --peers

Each has a new database on the same Postgres for each run. A worker's requests go to a sink of its own, so that it is
known whose they are; the one that is to be killed gets no answers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import closing
from uuid import uuid4

import click
from rich.table import Table

from listener.demo.embedded import EmbeddedPostgres
from tests.benchmarks import queues, rig
from tests.benchmarks.latency import Source
from tests.benchmarks.options import Options
from tests.benchmarks.report import Line, Of, at_most

_JOBS = 20
_PATIENCE = 150.0
_SETTLED_S = 6.0
"""Seconds that a worker has between its start and what is done to it."""
_HANGING_MS = 3_600_000.0
_PATIENT = {"FCM_REQUEST_TIMEOUT": "100", "LEASE": "300"}


def killed(server: EmbeddedPostgres, name: str, settings: Mapping[str, str]) -> float | None:
    """SIGKILL of a worker with jobs: seconds until all of them are with another; None: more than one waits for."""
    queue = queues.install(name, server, f"{name}_{uuid4().hex[:8]}")
    settings = {**settings, **_PATIENT}
    with rig.sink(_HANGING_MS) as holds, rig.sink() as takes, queue.worker(holds, settings) as first:
        rig.pgbench(queue.dsn, queue.insert(), clients=1, each=_JOBS)
        rig.until(lambda: holds.count() >= _JOBS, f"{name} did not take the jobs", by=first)
        with queue.worker(takes, settings):
            time.sleep(_SETTLED_S)
            began = time.time()
            first.kill()
            there = _until(takes, _JOBS)
    return None if there is None else there - began


def deaf(server: EmbeddedPostgres, name: str, settings: Mapping[str, str]) -> float | None:
    """The LISTEN backend is terminated: seconds that the next job waits."""
    queue = queues.install(name, server, f"{name}_{uuid4().hex[:8]}")
    with (
        rig.sink() as sink,
        queue.worker(sink, settings) as worker,
        queue.connect() as conn,
        closing(Source(queue)) as source,
    ):
        source.insert()
        rig.until(lambda: sink.count() >= 1, f"{name} did not take the job", by=worker)
        time.sleep(_SETTLED_S)
        if queue.deafen(conn) == 0:
            raise rig.BenchmarkFailed(f"no backend of {name} listens")
        inserting, _ = source.inserts[source.insert()]
        there = _until(sink, 2)
    return None if there is None else there - inserting / 1e9


def _until(sink: rig.Sink, count: int) -> float | None:
    """Unix time at which so many different jobs have come to a sink; None when they do not come."""

    def firsts() -> dict[str, int]:
        return {one.push_id: one.at_ns for one in reversed(sink.report())}

    try:
        rig.until(lambda: len(firsts()) >= count, "nothing happens", every=0.05, within=_PATIENCE)
    except rig.BenchmarkFailed:
        return None
    return sorted(firsts().values())[count - 1] / 1e9


def measure(
    names: tuple[str, ...], runs: Mapping[str, int], settings: Mapping[str, str]
) -> dict[str, dict[str, list[float | None]]]:
    """Seconds for each queue and each of the two, as often as ``runs`` says for the queue."""
    found: dict[str, dict[str, list[float | None]]] = {
        name: {what: [] for what in MEASURES} for name in names
    }
    with rig.postgres(fsync="off") as server:
        for name in names:
            for run in range(runs[name]):
                for what, one in MEASURES.items():
                    rig.say(f"{what}: {name}, run {run + 1}")
                    found[name][what].append(one(server, name, settings))
    return found


MEASURES = {"worker killed": killed, "LISTEN backend terminated": deaf}
_GOALS = {"worker killed": 2.0, "LISTEN backend terminated": 5.0}


def part(options: Options) -> list[Line]:
    """The peers once, for they take their time; not at all when it is to be quick."""
    names = (queues.LISTENER, *(() if options.quick else options.peers))
    runs = {name: options.runs if name == queues.LISTENER else 1 for name in names}
    found = measure(names, runs, options.settings)
    lines = []
    for what, goal in _GOALS.items():
        here = [seconds for seconds in found[queues.LISTENER][what] if seconds is not None]
        if len(here) < runs[queues.LISTENER]:
            raise rig.BenchmarkFailed(f"{what}: {here}, and then nothing for {_PATIENCE:g} s")
        peers = {name: _known(found[name][what]) for name in names if name != queues.LISTENER}
        lines.append(
            Line(f"{what}: work goes on within", "{:.2f} s", here, at_most(goal), peers, of=Of.WORST)
        )
    return lines


def _known(values: list[float | None]) -> list[float] | str:
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else f"> {_PATIENCE:.0f} s"


@click.command()
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--peers/--no-peers", default=False, show_default=True)
def main(runs: int, peers: bool) -> None:
    """Seconds until jobs are worked on again, by whom they may."""
    names = (queues.LISTENER, *(queues.PEERS if peers else ()))
    found = measure(names, dict.fromkeys(names, runs), {})
    table = Table("seconds, median (least to most)", *MEASURES, title=rig.machine())
    for name, results in found.items():
        cells = []
        for what in MEASURES:
            known = _known(results[what])
            cells.append(
                known
                if isinstance(known, str)
                else f"{statistics.median(known):.2f} ({min(known):.2f} to {max(known):.2f})"
            )
        table.add_row(name, *cells)
    rig.console.print(table)


if __name__ == "__main__":
    main()
