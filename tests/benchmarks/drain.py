"""How fast a backlog is sent, and what that costs: one process, and everything on this machine.

    python -m tests.benchmarks.drain --rows 50000 --latency-ms 50 --queue push-listener --queue pgqueuer

The rows are there before the worker starts, each inserted by a transaction of its own, as applications do. A push
is 300 bytes of device_token, title, body and data. The sink answers each request after the latency.

Two things tell what the figures are worth on this machine. The one is sending alone: the same messages to the same
sink, as many at once, with aiohttp on uvloop (``tests.benchmarks.alone``). The other is what the CPU allows: two cores
over the CPU time that a push takes of process, Postgres and sink together.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import click
from rich.table import Table

from listener.limits.claim_budget import reserved_for_high
from tests.benchmarks import queues, rig
from tests.benchmarks.options import Options, setting
from tests.benchmarks.report import Depends, Goal, Line, at_least, at_most, best, ratios

ALONE = "sending alone"
_ROWS = {queues.LISTENER: 50_000, ALONE: 20_000, "pgqueuer": 20_000, "procrastinate": 3_000}
_CORES = 2
_IN_FLIGHT = rig.CONNECTIONS - reserved_for_high(rig.CONNECTIONS)
"""Pushes of normal priority that push-listener has in flight at once."""
_LOADERS = 8

LOAD = """
insert into push_notifications (device_token, title, body, data)
  select repeat('c3kQ7xNw9eo-APA91bF', 8) || lpad(n::text, 11, '0'), 'Your ride is waiting',
         'A blue estate car, number plate 4711, stands at the corner. It waits for 5 min.',
         jsonb_build_object('ride', lpad(n::text, 8, '0'), 'screen', 'ride')
    from generate_series(1, {rows}) n
"""
"""The same pushes, all in one transaction: for push-listener alone, and soon done."""


FIGURES = {
    "pushes_per_s": "pushes a second, first to last request",
    "pushes_per_cpu_s": "pushes per CPU-second of the process",
    "seconds": "seconds",
    "worker_cpu_ms": "CPU-milliseconds for 1,000 pushes: process",
    "postgres_cpu_ms": "CPU-milliseconds for 1,000 pushes: Postgres, claim to settled",
    "sink_cpu_ms": "CPU-milliseconds for 1,000 pushes: sink",
    "wal_insert_bytes": "WAL bytes a push: insert",
    "wal_drain_bytes": "WAL bytes a push: claim, settle, log",
    "wal_bytes": "WAL bytes a push: both",
    "dead_versions": "dead row versions a push",
    "peak_rss_mb": "peak memory of the process, MB",
}


def measure(
    name: str, rows: int, latency_ms: float, *, tls: bool = False, settings: Mapping[str, str] | None = None
) -> dict[str, float]:
    """One run, in a new Postgres."""
    with rig.postgres() as server, rig.sink(latency_ms, tls=tls) as sink:
        queue = queues.install(name, server, "drain")
        with queue.connect() as conn:
            conn.execute("checkpoint")
            empty = rig.written(conn)
            rig.pgbench(queue.dsn, queue.insert(), clients=_LOADERS, each=rows // _LOADERS, durable=False)
            rows = queue.pending(conn)
            conn.execute("analyze")
            loaded = rig.written(conn)

            with queue.worker(sink, settings or {}) as worker:
                rig.until(lambda: sink.count() > 0, "no push has come to the sink", by=worker)
                postgres_cpu = -rig.tree_cpu_seconds(server.pid)
                sink_cpu = -rig.cpu_seconds(sink.pid)
                cpu, before = -rig.cpu_seconds(worker.pid), sink.count()
                if before >= rows:
                    raise rig.OverTooSoon(f"{rows} pushes are gone before one can look: take more")
                rig.until(lambda: sink.count() >= rows, "not every push has come to the sink", every=0.05)
                rig.until(lambda: queue.pending(conn) == 0, "not every push has been settled")
                cpu += rig.cpu_seconds(worker.pid)
                sink_cpu += rig.cpu_seconds(sink.pid)
                postgres_cpu += rig.tree_cpu_seconds(server.pid)
                peak = rig.peak_rss(worker.pid)
            rig.until(lambda: rig.is_alone(conn), "the connections of the process do not end")
            drained = rig.written(conn)
            arrivals = sink.report()
            if len({one.push_id for one in arrivals}) != rows:
                raise rig.BenchmarkFailed(f"{rows} pushes became {len(arrivals)} requests")
            if name == queues.LISTENER:
                logged = conn.execute("select count(*) from push_delivery_logs where status = 'sent'")
                if (found := logged.fetchone()) != (rows,):
                    raise rig.BenchmarkFailed(f"{rows} pushes left {found} log rows")
    seconds = (arrivals[-1].at_ns - arrivals[0].at_ns) / 1e9
    per_1000 = 1e6 / (rows - before)
    insert, drain = loaded - empty, drained - loaded
    return {
        "pushes_per_s": rows / seconds,
        "pushes_per_cpu_s": (rows - before) / cpu,
        "seconds": seconds,
        "worker_cpu_ms": cpu * per_1000,
        "postgres_cpu_ms": postgres_cpu * per_1000,
        "sink_cpu_ms": sink_cpu * per_1000,
        "wal_insert_bytes": insert.wal_bytes / rows,
        "wal_drain_bytes": drain.wal_bytes / rows,
        "wal_bytes": (insert.wal_bytes + drain.wal_bytes) / rows,
        "dead_versions": (insert.versions + drain.versions) / rows,
        "peak_rss_mb": peak / 1e6,
    }


def measure_alone(rows: int, latency_ms: float, *, tls: bool = False) -> dict[str, float]:
    """Sending alone: one run."""
    with rig.sink(latency_ms, tls=tls) as sink:
        arguments = (sink.sends, str(rows), str(_IN_FLIGHT))
        with rig.module("tests.benchmarks.alone", *arguments, environment=sink.trust) as sender:
            assert sender.stdout is not None
            rig.until(lambda: sink.count() > 0, "no message has come to the sink", by=sender)
            cpu, before = -rig.cpu_seconds(sender.pid), sink.count()
            if before >= rows:
                raise rig.OverTooSoon(f"{rows} messages are gone before one can look: take more")
            if sender.stdout.readline() != "done\n":
                raise rig.BenchmarkFailed("sending alone has ended early")
            cpu += rig.cpu_seconds(sender.pid)
            arrivals = sink.report()
    if len({one.push_id for one in arrivals}) != rows:
        raise rig.BenchmarkFailed(f"{rows} messages became {len(arrivals)} requests")
    return {
        "worker_cpu_ms": cpu * 1e6 / (rows - before),
        "pushes_per_s": rows * 1e9 / (arrivals[-1].at_ns - arrivals[0].at_ns),
    }


def part(options: Options) -> list[Line]:
    """Drain rate and cost, plain and over TLS; sending alone and the peers in turn with push-listener."""
    names = (queues.LISTENER, ALONE, *options.peers)
    lines: list[Line] = []
    for tls in (False, True) if options.tls is None else (options.tls,):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for run in range(options.runs):
            for name in names:
                rig.say(f"draining{' over TLS' if tls else ''}: {name}, run {run + 1}")
                rows = _ROWS[name] // (2 if options.quick else 1)
                if name == ALONE:
                    found[name].append(measure_alone(rows, options.latency_ms, tls=tls))
                else:
                    found[name].append(
                        measure(name, rows, options.latency_ms, tls=tls, settings=options.settings)
                    )
        alone = found.pop(ALONE)
        lines += drain_lines(found, alone, "TLS" if tls else "plain", cost=not lines)
    return lines


def allowed_per_s(run: Mapping[str, float]) -> float:
    """Pushes a second that two cores have CPU time for, at what one takes of all three processes."""
    return _CORES * 1e6 / (run["worker_cpu_ms"] + run["postgres_cpu_ms"] + run["sink_cpu_ms"])


def drain_lines(
    found: Mapping[str, list[dict[str, float]]], alone: Sequence[Mapping[str, float]], how: str, *, cost: bool
) -> list[Line]:
    """The figures of each queue's runs, beside those of sending alone."""

    def samples(key: str) -> list[float]:
        return [run[key] for run in found[queues.LISTENER]]

    def peers(key: str) -> dict[str, list[float]]:
        return {name: [run[key] for run in runs] for name, runs in found.items() if name != queues.LISTENER}

    def line(
        key: str,
        what: str,
        form: str,
        goal: Goal | None = None,
        depends: Depends = Depends.CPU,
        *,
        more_is_better: bool = False,
    ) -> Line:
        return Line(
            what, form, samples(key), goal, peers(key), depends=depends, more_is_better=more_is_better
        )

    def against_alone(name: str) -> list[float]:
        those = [run["worker_cpu_ms"] for run in alone]
        return ratios([run["worker_cpu_ms"] for run in found[name]], those)

    def against_allowed(name: str) -> list[float]:
        return [run["pushes_per_s"] / allowed_per_s(run) for run in found[name]]

    others = [name for name in found if name != queues.LISTENER]
    lines = [
        Line(
            f"CPU of a push, {how}, to sending alone with aiohttp",
            "{:.2f}",
            against_alone(queues.LISTENER),
            at_most(0.33),
            {name: against_alone(name) for name in others},
        ),
        Line(
            f"pushes a second, {how}, to what the CPU of two cores allows",
            "{:.2f}",
            against_allowed(queues.LISTENER),
            at_least(0.9),
            {name: against_allowed(name) for name in others},
        ),
    ]
    if (most := best(peers("pushes_per_s"), most=True)) is not None:
        against = [rate / most for rate in samples("pushes_per_s")]
        lines.append(Line(f"pushes a second, {how}, to the best peer's", "{:.1f}", against, at_least(4)))
    lines += [
        line("pushes_per_s", f"pushes a second, {how}", "{:,.0f}", more_is_better=True),
        line("worker_cpu_ms", f"CPU for 1,000 pushes, {how}: process", "{:.0f} ms"),
        Line(
            f"CPU for 1,000 pushes, {how}: sending alone with aiohttp",
            "{:.0f} ms",
            [run["worker_cpu_ms"] for run in alone],
            depends=Depends.CPU,
        ),
        line("postgres_cpu_ms", f"CPU for 1,000 pushes, {how}: Postgres, claim to settled", "{:.0f} ms"),
        line("sink_cpu_ms", f"CPU for 1,000 pushes, {how}: the stand-in for FCM", "{:.0f} ms"),
    ]
    if cost:
        anywhere = Depends.NOTHING
        lines += [
            line("wal_bytes", "WAL of a push, insert to settled, bytes", "{:,.0f}", at_most(2_150), anywhere),
            line("dead_versions", "dead row versions of a push", "{:.2f}", None, anywhere),
            line("peak_rss_mb", "memory of the process while it drains, most", "{:.0f} MB", None, anywhere),
        ]
    return lines


@click.command()
@click.option(
    "--queue",
    "names",
    multiple=True,
    default=(queues.LISTENER,),
    type=click.Choice([queues.LISTENER, *queues.PEERS]),
)
@click.option("--rows", default=50_000, show_default=True, type=click.IntRange(8))
@click.option(
    "--latency-ms", default=50.0, show_default=True, type=click.FloatRange(0), help="Of the sink's answers."
)
@click.option("--tls/--no-tls", default=False, show_default=True)
@setting
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
def main(
    names: tuple[str, ...], rows: int, latency_ms: float, tls: bool, settings: dict[str, str], runs: int
) -> None:
    """Drain a backlog: pushes a second, and what a push costs in CPU, WAL and memory."""
    rounds = []
    for _ in range(runs):
        alone = measure_alone(min(rows, _ROWS[ALONE]), latency_ms, tls=tls)
        each = {name: measure(name, rows, latency_ms, tls=tls, settings=settings) for name in names}
        for run in each.values():
            run["to_alone"] = run["worker_cpu_ms"] / alone["worker_cpu_ms"]
            run["to_allowed"] = run["pushes_per_s"] / allowed_per_s(run)
        rounds.append(each)
    table = Table("median", *names, title=f"{rows:,} pushes, answered after {latency_ms:g} ms")
    extra = {
        "to_alone": "CPU of the process, to sending alone",
        "to_allowed": "pushes a second, to what the CPU of two cores allows",
    }
    for key, what in {**FIGURES, **extra}.items():
        table.add_row(
            what, *(f"{statistics.median(each[name][key] for each in rounds):,.2f}" for name in names)
        )
    rig.console.print(table)


if __name__ == "__main__":
    main()
