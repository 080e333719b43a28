"""What a push costs the listener beside HTTP: the real rooms in this process, with an FCM that is a timer.

    python -m tests.benchmarks.hotpath --rows 30000

The rows are there before. All that a push passes through is the real thing, from the claim to the settlement, but
nothing goes over HTTP: each request is answered after the latency, by one timer for all of them.

With ``--parts`` a sampling profiler tells which part of the program the CPU time goes to. It costs some of it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import time
from collections import Counter, deque
from collections.abc import Mapping
from types import FrameType

import click
import psycopg
import uvloop
from google.oauth2.credentials import Credentials

from listener import config, log
from listener.config import Settings
from listener.fcm.auth import AccessTokens
from listener.fcm.sender import Sender
from listener.fcm.transports.base import Outgoing, Response
from listener.limits.health import FcmHealth
from listener.limits.quota import Quota
from listener.limits.shared_quota import SharedQuota
from listener.limits.slow_start import after_losses
from listener.metrics.own import Metrics
from listener.postgres import queue, workers
from listener.postgres.connect import Address, ServicePool
from listener.postgres.locks import LockWatch
from listener.sending.dispatcher import Dispatcher
from listener.tracing import Tracing
from listener.wakeup.waker import SweepingWaker
from listener.worker import assemble
from tests.benchmarks import rig
from tests.benchmarks.drain import LOAD

_SAMPLE_S = 0.001
_ANSWER = Response(
    200,
    {"Content-Type": "application/json; charset=UTF-8"},
    b'{\n  "name": "projects/bench-project/messages/0:0000000000000001%0000000000000001"\n}\n',
)


class Timer:
    """An FCM that accepts everything, after the latency. It is the same for all, so that first come is first due."""

    def __init__(self, latency: float, rows: int) -> None:
        self._latency = latency
        self._rows = rows
        self._loop = asyncio.get_running_loop()
        self._owed: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._requests = 0
        self.asked = asyncio.Event()
        """Set once as many requests as rows have come."""

    async def post(self, headers: Mapping[str, str], outgoing: Outgoing) -> Response:
        """See ``listener.fcm.transports.base.Transport``."""
        outgoing.make_body()
        self._requests += 1
        if self._requests == self._rows:
            self.asked.set()
        if self._latency:
            answered = self._loop.create_future()
            due = self._loop.time() + self._latency
            self._owed.append((due, answered))
            if len(self._owed) == 1:
                self._loop.call_at(due, self._answer)
            await answered
        return _ANSWER

    async def close(self) -> None:
        """Nothing to close."""

    def _answer(self) -> None:
        soon = self._loop.time() + 0.0005  # uvloop's timers count milliseconds
        while self._owed and self._owed[0][0] <= soon:
            _, answered = self._owed.popleft()
            if not answered.done():
                answered.set_result(None)
        if self._owed:
            self._loop.call_at(self._owed[0][0], self._answer)


class _Credentials(Credentials):
    def refresh(self, request: object) -> None:
        self.token = "ya29.c.timer"


class Parts:
    """A sampling profiler: which part of the program runs whenever a millisecond of CPU time has passed."""

    def __init__(self) -> None:
        self.samples: Counter[str] = Counter()

    def __enter__(self) -> Parts:
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, _SAMPLE_S, _SAMPLE_S)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0.0)

    def _sample(self, _: int, frame: FrameType | None) -> None:
        while frame is not None:
            if part := _part(frame.f_code.co_filename, frame.f_code.co_name):
                self.samples[part] += 1
                return
            frame = frame.f_back
        self.samples["event loop"] += 1


def _part(path: str, function: str) -> str | None:
    """The part that a function is of; None: whoever has called it is."""
    if "/prometheus_client/" in path:
        return "metrics"
    if path.endswith("/tests/benchmarks/hotpath.py") and function in ("post", "_answer"):
        return "timer in place of FCM"
    _, inside, name = path.rpartition("/listener/")
    return name.removesuffix(".py") if inside else None


async def _drain(dsn: str, settings: Settings, latency: float, rows: int, parts: Parts | None) -> float:
    """Sends all that waits; returns the CPU-seconds that it took."""
    metrics, timer = Metrics(), Timer(latency, rows)
    tokens = AccessTokens(_Credentials(token=None))  # type: ignore[no-untyped-call]
    sender = Sender(timer, tokens, metrics.exchange.observe)
    health = FcmHealth(after_losses(0, settings.max_in_flight, time.monotonic()))
    async with ServicePool(Address(dsn), prepares=True) as pool:
        await tokens.get()
        worker_id = await workers.register(pool, "bench")
        worker = queue.Queue(pool, worker_id=worker_id, lease=settings.lease)
        await worker.look_for_triggers()
        # The benchmark does not measure what FCM lets through.
        quota = SharedQuota(
            workers.Workers(pool, worker_id=worker_id, lease=settings.lease),
            Quota(1_000_000_000, 0.0, time.monotonic()),
            metrics,
        )
        dispatcher = assemble(
            settings, worker, SweepingWaker(), sender, health, quota, LockWatch(metrics), metrics, Tracing()
        ).dispatcher
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000 + 200 * settings.max_in_flight)  # as push-listener run does it
        began = time.process_time()
        with parts or contextlib.nullcontext():
            await _all(dispatcher, timer)
        cpu = time.process_time() - began
    await tokens.close()
    return cpu


async def _all(dispatcher: Dispatcher, timer: Timer) -> None:
    running, asked = asyncio.create_task(dispatcher.run()), asyncio.create_task(timer.asked.wait())
    await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
    dispatcher.stop()
    await running  # which settles the rest


def measure(rows: int, latency_ms: float, in_flight: int, parts: Parts | None) -> dict[str, float]:
    """One run, in a new Postgres."""
    with rig.postgres() as server:
        dsn = rig.new_database(server, "hotpath")
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("set synchronous_commit = off")
            conn.execute(LOAD.format(rows=rows).encode())
            conn.execute("vacuum analyze push_notifications")
            settings = config.load(database_url=dsn, max_in_flight=in_flight)
            postgres_cpu = -rig.tree_cpu_seconds(server.pid)
            seconds = -time.monotonic()
            cpu = uvloop.run(_drain(dsn, settings, latency_ms / 1000, rows, parts))
            seconds += time.monotonic()
            postgres_cpu += rig.tree_cpu_seconds(server.pid)
            sent = conn.execute(
                "select (select count(*) from push_notifications where status = 'sent'), "
                "(select count(*) from push_delivery_logs where status = 'sent')"
            ).fetchone()
    if sent != (rows, rows):
        raise rig.BenchmarkFailed(f"of {rows} pushes {sent} were sent, and logged")
    return {
        "us_per_push": 1e6 * cpu / rows,
        "pushes_per_cpu_s": rows / cpu,
        "postgres_us_per_push": 1e6 * postgres_cpu / rows,
        "pushes_per_s": rows / seconds,
    }


@click.command()
@click.option("--rows", default=30_000, show_default=True, type=click.IntRange(2))
@click.option(
    "--latency-ms", default=50.0, show_default=True, type=click.FloatRange(0), help="Of the answers."
)
@click.option("--in-flight", default=1000, show_default=True, type=click.IntRange(1), help="MAX_IN_FLIGHT.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--parts", "by_parts", is_flag=True, help="Tell where the CPU time goes.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def main(rows: int, latency_ms: float, in_flight: int, runs: int, by_parts: bool, as_json: bool) -> None:
    """What a push costs the listener beside HTTP."""
    log.configure("text", "warning")
    parts = Parts() if by_parts else None
    measured = rig.repeat(runs, lambda: measure(rows, latency_ms, in_flight, parts))
    lines = [
        ("us_per_push", "microseconds of CPU a push", ".1f"),
        ("pushes_per_cpu_s", "pushes per CPU-second", ",.0f"),
        ("postgres_us_per_push", "microseconds of Postgres' CPU a push", ".1f"),
        ("pushes_per_s", "pushes a second", ",.0f"),
    ]
    rig.show(f"{rows:,} pushes without HTTP, answered after {latency_ms:g} ms", measured, lines, as_json)
    if parts is not None:
        cost = sum(run["us_per_push"] for run in measured) / len(measured) / parts.samples.total()
        for part, samples in parts.samples.most_common():
            rig.errors.print(f"{samples * cost:6.1f} us  {part}")


if __name__ == "__main__":
    main()
