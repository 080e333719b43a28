"""From the insert of a push to its request at FCM.

    python -m tests.benchmarks.latency

At an idle queue: rows are inserted one at a time, each a random moment after the one before, into one database after
the other, a block here and a block there: one is watched by ``push-listener run``, another by the least program that
does LISTEN, claim and POST (``tests.benchmarks.bare``), others by the peers. All send to the sink, which answers at
once. Counted is from just before the INSERT is sent, and from when it has returned, committed, to the arrival.

At a rate: pgbench inserts at random moments, so many a second, each push with an id that tells when; counted is from
the moment when Postgres begins with the INSERT to the arrival.

Both on the disk of this machine, and on one on which a commit takes 5 ms: Postgres sleeps before each flush of the WAL.

``python -m tests.benchmarks.stages`` tells where the time goes at a rate.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from uuid import UUID, uuid4

import click
from psycopg import sql
from psycopg.types.json import Jsonb
from rich.table import Table

from listener.demo.embedded import EmbeddedPostgres
from tests.benchmarks import queues, rig
from tests.benchmarks.options import Options, setting
from tests.benchmarks.queues import Installed, Push
from tests.benchmarks.report import Depends, Fraction, Line, at_most, best, quantile, ratios
from tests.benchmarks.report import table as report_table
from tests.benchmarks.rig import Sink

_WARM_UP = 20
_PAUSE = (0.015, 0.045)
_BLOCK = 50
CLIENTS = 16
RATES = (200, 2000)
FLUSH_MS = 5.0
"""Of the slow disk."""
_BEHIND_S = 5.0
"""Seconds after the last insert at which who has not sent all has fallen behind."""
_KEPT_UP = 0.9
"""The least share of the rate that the inserts must come to. A queue that keeps inserts back has less to send."""

_PARAMETERS = Push("%(id)s::uuid", "%(token)s::text", "%(title)s::text", "%(body)s::text", "%(data)s::jsonb")

_MARK = "be9cbe9c"
STAMPED = (
    "(lpad(to_hex((extract(epoch from clock_timestamp()) * 1e6)::bigint), 16, '0')"
    f" || substr(md5(random()::text), 1, 8) || '{_MARK}')::uuid"
)
"""SQL: an id that tells, in microseconds of Unix time, when it was made."""


def stamp_us(push_id: str) -> int | None:
    """When an id was made by ``STAMPED``; None if it was made in another way."""
    digits = push_id.replace("-", "")
    return int(digits[:16], 16) if digits.endswith(_MARK) else None


class Source:
    """An application's connection, that inserts pushes and remembers when."""

    def __init__(self, queue: Installed) -> None:
        self._conn = queue.connect()
        self._statement = sql.SQL(queue.insert(_PARAMETERS))
        self.inserts: dict[UUID, tuple[int, int]] = {}
        """When each INSERT was about to be sent, and when it had been committed: Unix time in nanoseconds."""

    def insert(self) -> UUID:
        push_id = uuid4()
        values = {
            "id": push_id,
            "token": f"token-{push_id.hex}",
            "title": "Your ride is here",
            "body": "Blue estate car, two minutes away",
            "data": Jsonb({"ride": "42", "screen": "ride"}),
        }
        before = time.time_ns()
        self._conn.execute(self._statement, values, prepare=True)
        self.inserts[push_id] = before, time.time_ns()
        return push_id

    def warm_up(self, sink: Sink) -> None:
        """Inserts pushes until they arrive, and then some more."""
        for _ in range(_WARM_UP):
            before = sink.count()

            def arrives(before: int = before) -> bool:
                self.insert()
                time.sleep(0.1)
                return sink.count() > before

            rig.until(arrives, "what was inserted has not come to the sink")
        self.inserts.clear()

    def latencies(self, arrived: Mapping[UUID, int]) -> dict[str, list[float]]:
        """Milliseconds to each push's arrival, from before the INSERT and from after the commit; and between them."""
        each = [(before, after, arrived[push_id]) for push_id, (before, after) in self.inserts.items()]
        return {
            "insert": [(arrival - before) / 1e6 for before, _, arrival in each],
            "commit": [(arrival - after) / 1e6 for _, after, arrival in each],
            "own": [(after - before) / 1e6 for before, after, _ in each],
        }

    def close(self) -> None:
        self._conn.close()


def idle(
    names: Sequence[str],
    rows: int,
    *,
    tls: bool = False,
    settings: Mapping[str, str] | None = None,
    flush_ms: float = 0.0,
) -> dict[str, dict[str, float]]:
    """One run: ``rows`` through each of them, in turn."""
    rng = random.Random()
    with ExitStack() as stack:
        server = stack.enter_context(rig.postgres(**rig.slow_disk(flush_ms)))
        sink = stack.enter_context(rig.sink(tls=tls))
        sources = {}
        for name in names:
            queue = queues.install(name, server)
            stack.enter_context(queue.worker(sink, settings or {}))
            sources[name] = Source(queue)
            stack.callback(sources[name].close)
            sources[name].warm_up(sink)
        sink.reset()
        for start in range(0, rows, _BLOCK):
            turns = list(sources.values())
            rng.shuffle(turns)
            for source in turns:
                for _ in range(min(_BLOCK, rows - start)):
                    source.insert()
                    time.sleep(rng.uniform(*_PAUSE))
        rig.until(lambda: sink.count() >= len(names) * rows, "not every push has come to the sink")
        arrived = {UUID(one.push_id): one.at_ns for one in reversed(sink.report())}
        figures = {}
        for name, source in sources.items():
            figures[name] = {
                f"{since}_p{share}_ms": quantile(values, share / 100)
                for since, values in source.latencies(arrived).items()
                for share in (50, 90, 99)
            }
        return figures


@dataclass(frozen=True, slots=True)
class AtRate:
    inserted_per_s: float
    """What it came to: where a commit has to wait its turn to notify, it may be less than was wanted."""
    ms: list[float]
    """From insert to request of each push."""


def at_rate(
    server: EmbeddedPostgres,
    name: str,
    rate: int,
    seconds: int,
    *,
    tls: bool = False,
    settings: Mapping[str, str] | None = None,
) -> AtRate | None:
    """Pushes inserted at a rate; None when the queue falls behind."""
    with rig.sink(tls=tls) as sink:
        queue = queues.install(name, server, f"{name}_{rate}_{uuid4().hex[:8]}")
        with queue.worker(sink, settings or {}) as worker, queue.connect() as conn:
            source = Source(queue)
            source.warm_up(sink)
            source.close()
            sink.reset()
            statement = queue.insert(Push(id=STAMPED))
            came_to = rig.pgbench(queue.dsn, statement, clients=CLIENTS, seconds=seconds, rate=rate)
            try:
                rig.until(
                    lambda: queue.pending(conn) == 0,
                    "it falls behind",
                    every=0.1,
                    within=_BEHIND_S,
                    by=worker,
                )
            except rig.BenchmarkFailed:
                return None
        stamps = ((one.at_ns, stamp_us(one.push_id)) for one in sink.report())
        return AtRate(came_to, [at / 1e6 - stamp / 1e3 for at, stamp in stamps if stamp is not None])


def part(options: Options) -> list[Line]:
    """Idle: beside the bare loop and the peers, in turn. At 200 and 2,000 a second: the peers once each."""
    rows = 100 if options.quick else 200
    fast, slow = [], []
    for run in range(options.runs):
        rig.say(f"latency at an idle queue, run {run + 1}")
        names = (queues.LISTENER, queues.BARE, *options.peers)
        fast.append(idle(names, rows, tls=options.secure, settings=options.settings))
        rig.say(f"latency at an idle queue on a slow disk, run {run + 1}")
        names = (queues.LISTENER, *options.peers)
        slow.append(idle(names, rows, tls=options.secure, settings=options.settings, flush_ms=FLUSH_MS))
    lines = idle_lines(fast, slow, options.peers)
    for flush_ms in (0.0, FLUSH_MS):
        with rig.postgres(**rig.slow_disk(flush_ms)) as server:
            for rate in RATES:
                lines += _rate_lines(server, rate, options, flush_ms)
    return lines


def idle_lines(
    fast: Sequence[Mapping[str, Mapping[str, float]]],
    slow: Sequence[Mapping[str, Mapping[str, float]]],
    peers: Sequence[str],
) -> list[Line]:
    """The figures of runs on the disk of this machine, and of as many on a slow one, taken in turn."""
    bare = [run[queues.BARE]["insert_p50_ms"] for run in fast]
    lines = []
    for runs, disk in ((fast, ""), (slow, f", {FLUSH_MS:g} ms to commit")):

        def of(name: str, key: str, runs: Sequence[Mapping[str, Mapping[str, float]]] = runs) -> list[float]:
            return [run[name][key] for run in runs]

        what = f"insert to request, idle{disk}"
        for share, name in ((50, "median"), (99, "99 %")):
            here = of(queues.LISTENER, f"insert_p{share}_ms")
            others = {peer: of(peer, f"insert_p{share}_ms") for peer in peers}
            lines.append(Line(f"{what}, {name}", "{:.2f} ms", here, None, others, depends=Depends.COMMIT))
            lines += _to_best_peer(f"{what}, {name}", here, others)
    what = "insert to request, idle, median"
    own = [run[queues.LISTENER]["own_p50_ms"] for run in slow]
    return [
        *lines,
        Line(f"{what}: a bare loop's", "{:.2f} ms", bare, depends=Depends.COMMIT),
        Line(
            f"{what}, to the bare loop's",
            "{:.2f}",
            ratios([run[queues.LISTENER]["insert_p50_ms"] for run in fast], bare),
            at_most(1.2),
        ),
        Line(f"INSERT, idle, {FLUSH_MS:g} ms to commit, median", "{:.2f} ms", own, depends=Depends.COMMIT),
        Line(
            f"from the commit to the request, idle, {FLUSH_MS:g} ms to commit, median, to a bare loop on the fast disk",
            "{:.2f}",
            ratios([run[queues.LISTENER]["commit_p50_ms"] for run in slow], bare),
            at_most(1.2),
            {peer: ratios([run[peer]["commit_p50_ms"] for run in slow], bare) for peer in peers},
        ),
    ]


def _to_best_peer(what: str, here: Sequence[float], peers: Mapping[str, Sequence[float] | str]) -> list[Line]:
    if (least := best(peers, most=False)) is None:
        return []
    return [Line(f"{what}, to the best peer's", "{:.2f}", [each / least for each in here], at_most(1))]


def _rate_lines(server: EmbeddedPostgres, rate: int, options: Options, flush_ms: float) -> list[Line]:
    seconds = 4 if options.quick else 8
    disk = f", {flush_ms:g} ms to commit" if flush_ms else ""
    ran: dict[str, list[AtRate | None]] = {}
    for name in (queues.LISTENER, *options.peers):
        ran[name] = []
        for run in range(options.runs if name == queues.LISTENER else 1):
            rig.say(f"latency at {rate:,} a second{disk}: {name}, run {run + 1}")
            ran[name].append(
                at_rate(server, name, rate, seconds, tls=options.secure, settings=options.settings)
            )
    return rate_lines(rate, disk, ran)


def rate_lines(per_s: float, disk: str, ran: Mapping[str, Sequence[AtRate | None]]) -> list[Line]:
    """The figures of the runs that kept up; and, when push-listener did not in one of them, that.

    A peer that keeps the inserts back is not compared.
    """
    rate = f"{per_s:,.0f} a second{disk}"
    found = {name: [run for run in runs if run is not None] for name, runs in ran.items()}
    behind = {name: [float(len(runs) - len(found[name]))] for name, runs in ran.items()}

    def of(name: str, figure: Callable[[AtRate], float]) -> list[float]:
        return [figure(run) for run in found[name]]

    def others(figure: Callable[[AtRate], float]) -> dict[str, list[float] | str]:
        return {name: of(name, figure) or "falls behind" for name in found if name != queues.LISTENER}

    what = f"insert to request, {rate}"
    lines = []
    if behind[queues.LISTENER] != [0.0]:
        runs = f"{what}, runs that fell behind"
        lines.append(Line(runs, "{:.0f}", behind.pop(queues.LISTENER), at_most(0), behind))
    if found[queues.LISTENER]:
        not_compared: dict[str, list[float] | str] = {
            name: "keeps inserts back"
            for name, runs in found.items()
            if name != queues.LISTENER and runs and max(run.inserted_per_s for run in runs) < _KEPT_UP * per_s
        }
        for share, name in ((0.5, "median"), (0.99, "99 %")):

            def figure(run: AtRate, share: float = share) -> float:
                return quantile(run.ms, share)

            here, peers = of(queues.LISTENER, figure), others(figure) | not_compared
            lines.append(Line(f"{what}, {name}", "{:.2f} ms", here, None, peers, depends=Depends.COMMIT))
            lines += _to_best_peer(f"{what}, {name}", here, peers)
        lines.append(
            Line(
                f"inserts at {rate}, what they came to",
                "{:,.0f}",
                of(queues.LISTENER, lambda run: run.inserted_per_s),
                None,
                others(lambda run: run.inserted_per_s),
                more_is_better=True,
            )
        )
    return lines


@click.command()
@click.option("--rows", default=300, show_default=True, type=click.IntRange(1), help="Through each, idle.")
@click.option(
    "--rate",
    "rates",
    multiple=True,
    type=click.IntRange(1),
    help="Inserts a second; default: idle. May be repeated.",
)
@click.option("--seconds", default=8, show_default=True, type=click.IntRange(1), help="At each rate.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--peers/--no-peers", default=False, show_default=True)
@click.option("--tls/--no-tls", default=False, show_default=True)
@click.option("--flush-ms", default=0.0, help="Lets each flush of the WAL take longer, as a slow disk does.")
@setting
def main(
    rows: int,
    rates: tuple[int, ...],
    seconds: int,
    runs: int,
    peers: bool,
    tls: bool,
    flush_ms: float,
    settings: dict[str, str],
) -> None:
    """Insert to FCM request: at an idle queue beside a bare LISTEN-claim loop, or at a rate."""
    others = queues.PEERS if peers else ()
    disk = f", {flush_ms:g} ms to commit" if flush_ms else ""
    if rates:
        with rig.postgres(**rig.slow_disk(flush_ms)) as server:
            lines = []
            for rate in rates:
                ran = {
                    name: [
                        at_rate(server, name, rate, seconds, tls=tls, settings=settings) for _ in range(runs)
                    ]
                    for name in (queues.LISTENER, *others)
                }
                lines += rate_lines(rate, disk, ran)
        rig.console.print(report_table([Fraction("latency", 0.0, 0.0, lines)], rig.machine()))
        return
    names = (queues.LISTENER, queues.BARE, *others)
    found = [idle(names, rows, tls=tls, settings=settings, flush_ms=flush_ms) for _ in range(runs)]
    table = Table("ms, median of the runs", *names, title=f"Insert to request, idle{disk}: {rig.machine()}")
    for key in found[0][queues.LISTENER]:
        table.add_row(key, *(f"{statistics.median(run[name][key] for run in found):.2f}" for name in names))
    table.add_row(
        "insert_p50, ratio to the bare loop",
        f"{statistics.median(r[names[0]]['insert_p50_ms'] / r[names[1]]['insert_p50_ms'] for r in found):.2f}",
    )
    rig.console.print(table)


if __name__ == "__main__":
    main()
