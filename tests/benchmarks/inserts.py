"""What the queue costs the application: single-row inserts a second from 32 clients, without it and with it.

    python -m tests.benchmarks.inserts

The clients are pgbench's, each insert is a transaction of its own, and every commit waits for the disk. Four databases
of one Postgres are written to in turn:

- ``none``: the trigger that notifies is switched off, of push-listener's every trigger; nobody listens
- ``asleep``: triggers; nobody listens
- ``polling``: triggers, and a listener that has a backlog, but cannot send it: FCM does not answer. What is lost is
  lost to triggers and notifications
- ``draining``: triggers, and a listener that sends what is inserted, FCM answering after 50 ms. It, the stand-in for
  FCM and Postgres share the cores with the inserts

The peers likewise.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import click
from rich.table import Table

from listener.demo.embedded import EmbeddedPostgres
from tests.benchmarks import queues, rig
from tests.benchmarks.options import Options
from tests.benchmarks.queues import Installed
from tests.benchmarks.report import Depends, Line, at_least, ratios

CLIENTS = 32
ARMS = ("none", "asleep", "polling", "draining")
_BACKLOG = 20_000
_HANGING_MS = 3_600_000.0
# Of the listener that has requests under way that will not be answered.
_PATIENT = {"FCM_REQUEST_TIMEOUT": "900", "LEASE": "3600", "SHUTDOWN_GRACE": "1"}


@contextmanager
def _arm(
    server: EmbeddedPostgres, name: str, arm: str, settings: Mapping[str, str], latency_ms: float
) -> Iterator[Installed]:
    """A database as it is to be while it is written to."""
    with ExitStack() as stack:
        queue = queues.install(name, server, f"{name}_{arm}")
        with queue.connect() as conn:
            if arm == "none":
                conn.execute(queue.silence.encode())
        if arm == "polling":
            rig.pgbench(queue.dsn, queue.insert(), clients=8, each=_BACKLOG // 8, durable=False)
            sink = stack.enter_context(rig.sink(_HANGING_MS))
            worker = stack.enter_context(queue.worker(sink, {**settings, **_PATIENT}))
            rig.until(lambda: sink.count() > 0, "no push has come to the sink", by=worker)
            stack.callback(worker.kill)
        elif arm == "draining":
            sink = stack.enter_context(rig.sink(latency_ms))
            worker = stack.enter_context(queue.worker(sink, settings))
            rig.pgbench(queue.dsn, queue.insert(), clients=1, each=1)
            rig.until(lambda: sink.count() > 0, "no push has come to the sink", by=worker)
            stack.callback(worker.kill)
        yield queue


def measure(
    name: str,
    seconds: int,
    rounds: int,
    settings: Mapping[str, str],
    arms: Sequence[str] = ARMS,
    *,
    latency_ms: float = 50.0,
    flush_ms: float = 0.0,
) -> dict[str, list[float]]:
    """Inserts a second for each of the arms, so many times in turn; ``flush_ms``: see ``main``."""
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    with ExitStack() as stack:
        server = stack.enter_context(rig.postgres(**rig.slow_disk(flush_ms)))
        made = {arm: stack.enter_context(_arm(server, name, arm, settings, latency_ms)) for arm in arms}
        for number in range(rounds):
            for arm in arms if number % 2 else reversed(arms):
                rig.say(f"inserts: {name}, {arm}, round {number + 1}")
                found[arm].append(_rate(made[arm], seconds, drained=arm == "draining"))
    return found


def _rate(queue: Installed, seconds: int, *, drained: bool) -> float:
    """Inserts a second; when ``drained``, waits until all is sent: the next one is to have the cores for itself."""
    with queue.connect() as conn:
        conn.execute("checkpoint")
        rate = rig.pgbench(queue.dsn, queue.insert(), clients=CLIENTS, seconds=seconds)
        if drained:
            rig.until(lambda: queue.pending(conn) == 0, "not every push has been sent", every=0.1)
    return rate


def part(options: Options) -> list[Line]:
    """push-listener, then the peers."""
    rounds, seconds = (2, 2) if options.quick else (2 * options.runs, 3)
    here = measure(queues.LISTENER, seconds, rounds, options.settings, latency_ms=options.latency_ms)
    peers = {name: measure(name, seconds, 2, {}, latency_ms=options.latency_ms) for name in options.peers}

    def line(arm: str, what: str, goal: float | None = None) -> Line:
        return Line(
            f"single-row inserts, {what}, to no trigger",
            "{:.2f}",
            ratios(here[arm], here["none"]),
            None if goal is None else at_least(goal),
            {name: ratios(found[arm], found["none"]) for name, found in peers.items()},
            more_is_better=True,
        )

    return [
        Line(
            "single-row inserts a second, 32 clients, no trigger",
            "{:,.0f}",
            here["none"],
            None,
            {name: found["none"] for name, found in peers.items()},
            depends=Depends.CPU,
            more_is_better=True,
        ),
        line("polling", "trigger, listener polling", 0.95),
        line("draining", "trigger, listener sending on the same cores"),
        line("asleep", "trigger, nobody listens"),
    ]


@click.command()
@click.option("--queue", default=queues.LISTENER, type=click.Choice([queues.LISTENER, *queues.PEERS]))
@click.option("--seconds", default=4, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=6, show_default=True, type=click.IntRange(1))
@click.option("--arm", "arms", multiple=True, default=ARMS, type=click.Choice(ARMS))
@click.option("--flush-ms", default=0.0, help="Lets each flush of the WAL take longer, as a slow disk does.")
def main(queue: str, seconds: int, rounds: int, arms: tuple[str, ...], flush_ms: float) -> None:
    """Inserts a second with and without the queue."""
    found = measure(queue, seconds, rounds, {}, arms, flush_ms=flush_ms)
    table = Table("inserts/s", "median", "to none", title=f"{queue}: {rig.machine()}")
    for arm, rates in found.items():
        ratio = f"{statistics.median(ratios(rates, found['none'])):.2f}" if "none" in found else ""
        table.add_row(arm, f"{statistics.median(rates):,.0f}", ratio)
    rig.console.print(table)


if __name__ == "__main__":
    main()
