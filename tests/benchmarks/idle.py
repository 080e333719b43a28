"""What the listener costs while there is nothing to do: queries and CPU time a minute, for each process.

    python -m tests.benchmarks.idle --processes 2 --seconds 300

The processes send one push, then nothing more happens. After a rest every statement that they send is counted in the
log of Postgres.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import ExitStack

import click
import orjson
import psycopg
from rich.table import Table

from listener.embedded import EmbeddedPostgres
from tests.benchmarks import rig
from tests.benchmarks.options import Options
from tests.benchmarks.report import Line, at_most

_REST_S = 15.0
_LONGEST = 60
# Its further lines begin with a tab.
_STATEMENT = re.compile(
    r"^push-listener[a-z ]*\|LOG:  (?:statement|execute [^:]*): (?P<statement>.*\n(?:\t.*\n)*)", re.MULTILINE
)
_LOGGED = {"log_statement": "all", "log_line_prefix": "%a|"}


def measure(processes: int, seconds: float) -> tuple[float, float, Counter[str]]:
    """Queries and CPU milliseconds a minute and process, and how often each statement came."""
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres(version=rig.POSTGRES, settings=_LOGGED))
        sink = stack.enter_context(rig.sink())
        dsn = rig.new_database(server, "idle")
        environment = rig.listener_environment(dsn, sink)
        children = [
            stack.enter_context(rig.module("listener", "run", environment=environment))
            for _ in range(processes)
        ]
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("insert into push_notifications (device_token, title) values ('t', 't')")
        rig.until(lambda: sink.count() == 1, "the push never came to the sink")
        time.sleep(_REST_S)
        start, cpu = server.log_file.stat().st_size, [rig.cpu_seconds(child.pid) for child in children]
        time.sleep(seconds)
        used = sum(rig.cpu_seconds(child.pid) - before for child, before in zip(children, cpu, strict=True))
        with server.log_file.open("rb") as log:
            log.seek(start)
            said = log.read().decode(errors="replace")
    found = Counter(
        " ".join(match["statement"].split())[:_LONGEST] for match in _STATEMENT.finditer(said + "\n")
    )
    share = seconds / 60 * processes
    return found.total() / share, used * 1000 / share, found


def part(options: Options) -> list[Line]:
    """Two processes for some minutes."""
    queries, cpu_ms, _ = measure(2, 30.0 if options.quick else 240.0)
    return [
        Line("queries a minute and idle process", "{:.2f}", [queries], at_most(2)),
        Line("CPU of an idle process, a minute", "{:.0f} ms", [cpu_ms]),
    ]


@click.command()
@click.option("--processes", default=2, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=300.0, show_default=True, type=click.FloatRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def main(processes: int, seconds: float, as_json: bool) -> None:
    """Counts what idle processes ask of Postgres."""
    queries, cpu_ms, found = measure(processes, seconds)
    if as_json:
        figures = {"queries_per_minute": queries, "cpu_ms_per_minute": cpu_ms, "statements": dict(found)}
        click.echo(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
        return
    table = Table(title=f"{processes} idle processes, {seconds:g} s: {rig.machine()}", title_justify="left")
    table.add_column("a minute, for each process")
    table.add_column("", justify="right")
    table.add_row("queries (goal: at most 2)", f"{queries:.2f}")
    table.add_row("CPU time, ms", f"{cpu_ms:.0f}")
    for statement, count in found.most_common():
        table.add_row(f"  {statement}", f"{count / (seconds / 60 * processes):.2f}")
    rig.console.print(table)


if __name__ == "__main__":
    main()
