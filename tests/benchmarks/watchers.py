"""What people who watch the page cost: how fast a backlog is sent, and the CPU for it, with 0, 1 and 16 of them.

    python -m tests.benchmarks.watchers --rows 50000 --runs 5

The service waits with an empty queue, the watchers open their streams, and then one transaction inserts all rows. The
numbers of watchers take turns. The watchers are a process of their own, whose CPU does not count, but on a machine with
few cores it takes some from the others: they are told in the table.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import sys
import time
from contextlib import ExitStack

import aiohttp
import click
from rich.table import Table

from tests.benchmarks import queues, rig
from tests.benchmarks.drain import LOAD

_NUMBERS = (0, 1, 16)


async def _watch(url: str, number: int) -> None:
    """Opens so many streams and reads them until the process is ended; says when all are open."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
    ) as http:

        async def stream(opened: asyncio.Event) -> None:
            async with http.get(url, headers={"Accept": "text/event-stream"}) as answer:
                answer.raise_for_status()
                opened.set()
                async for _ in answer.content.iter_any():
                    pass

        events = [asyncio.Event() for _ in range(number)]
        async with asyncio.TaskGroup() as group:
            for event in events:
                group.create_task(stream(event))
            for event in events:
                await event.wait()
            print("open", flush=True)


def measure(watchers: int, rows: int, latency_ms: float) -> dict[str, float]:
    """One run, in a new Postgres."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    with rig.postgres() as server, rig.sink(latency_ms) as sink, ExitStack() as stack:
        queue = queues.install(queues.LISTENER, server, "watched")
        conn = stack.enter_context(queue.connect())
        worker = stack.enter_context(queue.worker(sink, {"PORT": str(port)}))
        rig.until(lambda: _is_ready(port), "the service is not ready", by=worker)
        watching = 0.0
        if watchers:
            crowd = stack.enter_context(
                rig.module(
                    "tests.benchmarks.watchers",
                    "--watch",
                    f"http://127.0.0.1:{port}/events",
                    "--number",
                    str(watchers),
                )
            )
            assert crowd.stdout is not None
            if crowd.stdout.readline().strip() != "open":
                raise rig.BenchmarkFailed("the streams of the watchers did not open")
            watching = -rig.cpu_seconds(crowd.pid)
        cpu, postgres = -rig.cpu_seconds(worker.pid), -rig.tree_cpu_seconds(server.pid)
        conn.execute(LOAD.format(rows=rows).encode())
        began = time.perf_counter()
        rig.until(lambda: sink.count() >= rows, "not every push has come to the sink", every=0.05, by=worker)
        seconds = time.perf_counter() - began
        rig.until(lambda: queue.pending(conn) == 0, "not every push has been settled")
        cpu += rig.cpu_seconds(worker.pid)
        postgres += rig.tree_cpu_seconds(server.pid)
        if watchers:
            watching += rig.cpu_seconds(crowd.pid)
    return {
        "rate": rows / seconds,
        "worker": cpu * 1e6 / rows,
        "postgres": postgres * 1e6 / rows,
        "watchers": watching * 1e6 / rows,
    }


def _is_ready(port: int) -> bool:
    async def ask() -> bool:
        try:
            async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    return asyncio.run(ask())


_ROWS = (
    ("rate", "pushes a second", "{:,.0f}"),
    ("worker", "CPU of the service, us a push", "{:.0f}"),
    ("postgres", "CPU of Postgres, us a push", "{:.0f}"),
    ("watchers", "CPU of the watchers, us a push", "{:.0f}"),
)


@click.command()
@click.option("--rows", default=50_000, show_default=True, type=click.IntRange(1))
@click.option(
    "--latency-ms", default=50.0, show_default=True, type=click.FloatRange(0), help="Of the sink's answers."
)
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--watch", metavar="URL", hidden=True, help="Be the watchers of this address.")
@click.option("--number", default=1, hidden=True)
def main(rows: int, latency_ms: float, runs: int, watch: str | None, number: int) -> None:
    """Drain a backlog while 0, 1 and 16 people watch the page."""
    if watch is not None:
        asyncio.run(_watch(watch, number))
        sys.exit(0)
    rig.errors.print(rig.machine())
    found: dict[int, list[dict[str, float]]] = {each: [] for each in _NUMBERS}
    for run in range(runs):
        for watchers in _NUMBERS:
            rig.say(f"run {run + 1}, {watchers} watchers")
            found[watchers].append(measure(watchers, rows, latency_ms))
    table = Table("median", *(f"{each} watchers" for each in _NUMBERS), title=f"{rows:,} pushes, {runs} runs")
    for key, what, form in _ROWS:
        medians = [statistics.median(run[key] for run in found[each]) for each in _NUMBERS]
        cells = [form.format(medians[0])]
        for value in medians[1:]:
            ratio = f"  x {value / medians[0]:.2f}" if medians[0] else ""
            cells.append(form.format(value) + ratio)
        table.add_row(what, *cells)
    rig.console.print(table)


if __name__ == "__main__":
    main()
