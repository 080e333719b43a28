"""What a queue costs while there is nothing to do: queries and CPU time a minute, for each process.

    python -m tests.benchmarks.idle --processes 2 --seconds 300

Two processes of push-listener, and one of each peer, send one push, then nothing more happens. After a rest every
statement that they send is counted in the log of Postgres.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import click
from rich.table import Table

from tests.benchmarks import queues, rig
from tests.benchmarks.options import Options
from tests.benchmarks.report import Depends, Line, at_most

_REST_S = 15.0
_LONGEST = 60
# Its further lines begin with a tab.
_STATEMENT = re.compile(
    r"^(?P<database>[a-z-]*)\|LOG:  (?:statement|execute [^:]*): (?P<statement>.*\n(?:\t.*\n)*)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Idle:
    """A minute of one process."""

    queries: float
    cpu_ms: float
    statements: Mapping[str, float]


def measure(processes: Mapping[str, int], seconds: float, settings: Mapping[str, str]) -> dict[str, Idle]:
    """So many processes of each queue, side by side, for so long."""
    with ExitStack() as stack:
        server = stack.enter_context(rig.postgres(log_statement="all", log_line_prefix="%d|"))
        sink = stack.enter_context(rig.sink())
        pids: dict[str, list[int]] = {}
        for number, (name, count) in enumerate(processes.items(), 1):
            queue = queues.install(name, server)
            workers = [stack.enter_context(queue.worker(sink, settings)) for _ in range(count)]
            rig.pgbench(queue.dsn, queue.insert(), clients=1, each=1)
            rig.until(lambda wanted=number: sink.count() == wanted, "the push never came to the sink")  # type: ignore[misc]
            pids[name] = [worker.pid for worker in workers]
        time.sleep(_REST_S)
        start = server.log_file.stat().st_size
        cpu = {name: -sum(map(rig.cpu_seconds, each)) for name, each in pids.items()}
        time.sleep(seconds)
        for name, each in pids.items():
            cpu[name] += sum(map(rig.cpu_seconds, each))
        with server.log_file.open("rb") as log:
            log.seek(start)
            said = log.read().decode(errors="replace")
    found: dict[str, Counter[str]] = {name: Counter() for name in processes}
    for match in _STATEMENT.finditer(said + "\n"):
        if (statements := found.get(match["database"])) is not None:
            statements[" ".join(match["statement"].split())[:_LONGEST]] += 1
    figures = {}
    for name, count in processes.items():
        share = seconds / 60 * count
        each_minute = {statement: times / share for statement, times in found[name].most_common()}
        figures[name] = Idle(found[name].total() / share, cpu[name] * 1000 / share, each_minute)
    return figures


def part(options: Options) -> list[Line]:
    """Once, for five minutes, in which an idle process counts the queue twice; for two if ``quick``."""
    processes = {queues.LISTENER: 2, **dict.fromkeys(options.peers, 1)}
    rig.say("idle")
    found = measure(processes, 120.0 if options.quick else 300.0, options.settings)
    here = found.pop(queues.LISTENER)
    return [
        Line(
            "queries a minute of an idle process",
            "{:.1f}",
            [here.queries],
            at_most(6),
            {name: [one.queries] for name, one in found.items()},
        ),
        Line(
            "CPU a minute of an idle process",
            "{:.0f} ms",
            [here.cpu_ms],
            None,
            {name: [one.cpu_ms] for name, one in found.items()},
            depends=Depends.CPU,
        ),
    ]


@click.command()
@click.option("--processes", default=2, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=300.0, show_default=True, type=click.FloatRange(1))
def main(processes: int, seconds: float) -> None:
    """Counts what idle processes of push-listener ask of Postgres."""
    found = measure({queues.LISTENER: processes}, seconds, {})[queues.LISTENER]
    table = Table(title=f"{processes} idle processes, {seconds:g} s: {rig.machine()}", title_justify="left")
    table.add_column("a minute, for each process")
    table.add_column("", justify="right")
    table.add_row("queries (goal: at most 6)", f"{found.queries:.2f}")
    table.add_row("CPU time, ms", f"{found.cpu_ms:.0f}")
    for statement, times in found.statements.items():
        table.add_row(f"  {statement}", f"{times:.2f}")
    rig.console.print(table)


if __name__ == "__main__":
    main()
