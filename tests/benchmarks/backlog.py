"""A million normal pushes wait: how long a high-priority one does, and how much memory the listener takes.

    python -m tests.benchmarks.backlog --rows 1000000

One listener process drains the backlog, FCM answering after 50 ms. High-priority pushes are inserted meanwhile, 50 a
second; and again while FCM answers after 2 s only, so that every place in flight is taken by pushes that wait, 20 a
second. Counted is from the moment when Postgres begins with the INSERT to the arrival of the request. The process'
memory is looked at four times a second, until all are sent.
"""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import click
from rich.table import Table

from tests.benchmarks import queues, rig
from tests.benchmarks.drain import LOAD
from tests.benchmarks.latency import STAMPED, stamp_us
from tests.benchmarks.options import Options
from tests.benchmarks.queues import Push
from tests.benchmarks.report import Depends, Line, Of, at_most, quantile
from tests.benchmarks.rig import Arrival

ROWS = 1_000_000
_FULL_RATE, _SLOW_RATE = 50, 20
_SLOW_MS = 2000.0
_SETTLING_S = 5.0
_SAMPLES_PER_S = 4
_HIGH = "select id::text from push_notifications where priority = 'high'"
# As the index of the queue has it.
_HIGH_LEFT = """
select count(*) from push_notifications
  where (case priority::text when 'high' then 0 else 1 end) = 0
    and next_attempt_at is not null and status in ('pending', 'processing', 'failed')
"""


@dataclass(slots=True)
class Found:
    full_ms: list[float]
    """From insert to request of each high-priority push, while the backlog is sent."""
    slow_ms: list[float]
    """While FCM is slow."""
    rss_mb: list[float] = field(default_factory=list)
    """From the first request on."""
    sent_per_s: float = 0.0

    @property
    def growth(self) -> float:
        """The most of the second half of the time, against the most of the first."""
        half = len(self.rss_mb) // 2
        return max(self.rss_mb[half:]) / max(self.rss_mb[:half])


def measure(
    rows: int, latency_ms: float, seconds: int, settings: Mapping[str, str], *, tls: bool, drain: bool
) -> Found:
    """Both of the above for so many seconds; then, with ``drain``, what is left is sent as well."""
    with rig.postgres() as server, rig.sink(latency_ms, tls=tls) as sink:
        queue = queues.install(queues.LISTENER, server, "backlog")
        with queue.connect() as conn:
            rig.say(f"backlog: loading {rows:,} rows")
            conn.execute(LOAD.format(rows=rows).encode())
            conn.execute("vacuum analyze push_notifications")
            conn.execute("checkpoint")

            def ids() -> set[str]:
                return {push_id for (push_id,) in conn.execute(_HIGH.encode())}

            def high(rate: int) -> list[float]:
                known, earlier = sink.count(), ids()
                statement = queue.insert(Push(id=STAMPED, priority="'high'"))
                rig.pgbench(queue.dsn, statement, clients=4, seconds=seconds, rate=rate)
                if (left := queue.pending(conn)) < rate * seconds:
                    raise rig.BenchmarkFailed(f"only {left} pushes were left: more --rows are needed")
                rig.until(
                    lambda: conn.execute(_HIGH_LEFT.encode()).fetchone() == (0,),
                    "not every high-priority push is settled",
                    every=0.1,
                    by=worker,
                )
                return waits_ms(sink.report(known), ids() - earlier)

            with queue.worker(sink, settings) as worker:
                rig.until(lambda: sink.count() > 0, "no push has come to the sink", by=worker)
                with memory(worker) as rss_mb:
                    time.sleep(_SETTLING_S)
                    rig.say("backlog: high-priority pushes")
                    full = high(_FULL_RATE)
                    sink.answer_after(_SLOW_MS)
                    time.sleep(_SETTLING_S)
                    rig.say("backlog: high-priority pushes while FCM is slow")
                    slow = high(_SLOW_RATE)
                    sink.answer_after(latency_ms)
                    before, since = sink.count(), time.monotonic()
                    if drain:
                        rig.say("backlog: the rest")
                        rig.until(
                            lambda: queue.pending(conn) == 0,
                            "not all is sent",
                            every=1.0,
                            within=600,
                            by=worker,
                        )
                    rate = (sink.count() - before) / (time.monotonic() - since)
    return Found(full, slow, rss_mb, rate)


def waits_ms(arrivals: Sequence[Arrival], inserted: Collection[str]) -> list[float]:
    """From insert to first request of each push that was inserted, all of which must have arrived."""
    firsts = {one.push_id: one.at_ns for one in reversed(arrivals) if one.push_id in inserted}
    if not firsts or len(firsts) < len(inserted):
        raise rig.BenchmarkFailed(f"{len(firsts)} of {len(inserted)} high-priority pushes came to the sink")
    stamps = ((at_ns, stamp_us(push_id)) for push_id, at_ns in firsts.items())
    return [at_ns / 1e6 - stamp / 1e3 for at_ns, stamp in stamps if stamp is not None]


@contextmanager
def memory(process: subprocess.Popen[str]) -> Iterator[list[float]]:
    """Resident memory in MB, looked at again and again until the block ends."""
    samples: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(1 / _SAMPLES_PER_S) and process.poll() is None:
            samples.append(rig.rss(process.pid) / 1e6)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield samples
    finally:
        over.set()
        looking.join()


def part(options: Options) -> list[Line]:
    """One run: it is a long one."""
    found = measure(
        ROWS,
        options.latency_ms,
        8 if options.quick else 20,
        options.settings,
        tls=options.secure,
        drain=not options.quick,
    )
    return [
        Line(
            f"high priority behind 1,000,000{title}, {what}",
            "{:.1f} ms",
            [quantile(values, share)],
            goal,
            depends=Depends.CPU,
        )
        for title, values in (("", found.full_ms), (", FCM slow", found.slow_ms))
        for what, share, goal in (("median", 0.5, None), ("99 %", 0.99, at_most(100)))
    ] + [
        Line(
            "memory with 1,000,000 waiting, most", "{:.0f} MB", [max(found.rss_mb)], at_most(150), of=Of.WORST
        ),
        Line(
            "memory with 1,000,000 waiting, growth, second half to first",
            "{:.2f}",
            [found.growth],
            at_most(1.05),
        ),
    ]


@click.command()
@click.option("--rows", default=ROWS, show_default=True, type=click.IntRange(1000))
@click.option("--seconds", default=20, show_default=True, type=click.IntRange(1))
@click.option("--drain/--no-drain", default=False, show_default=True)
def main(rows: int, seconds: int, drain: bool) -> None:
    """High-priority pushes, and memory, with a backlog."""
    found = measure(rows, 50.0, seconds, {}, tls=False, drain=drain)
    table = Table("", "high, FCM as ever", "high, FCM slow", title=f"ms: {rig.machine()}")
    for share in (0.5, 0.9, 0.99, 1.0):
        table.add_row(f"{share:.0%}", *(f"{quantile(v, share):.1f}" for v in (found.full_ms, found.slow_ms)))
    rig.console.print(table)
    rig.console.print(
        f"memory: median {statistics.median(found.rss_mb):.0f} MB, most {max(found.rss_mb):.0f} MB; "
        f"{found.sent_per_s:,.0f} pushes/s at the end"
    )


if __name__ == "__main__":
    main()
