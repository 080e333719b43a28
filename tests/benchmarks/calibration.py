"""What a fixed piece of work takes on this machine: figures that depend on the machine are compared with it in mind."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import orjson
import psycopg

from listener.demo.embedded import EmbeddedPostgres
from tests.benchmarks.report import Depends, quantile

CPU_MS = "cpu_ms"
"""CPU-milliseconds of a loop that writes, reads and hashes JSON."""
COMMIT_MS = "commit_ms"
"""Milliseconds of an INSERT with its commit, which waits for the disk."""
ROUND_TRIP_US = "round_trip_us"
"""Microseconds of a statement that does nothing, from this process to Postgres and back."""

SCALES = {Depends.CPU: CPU_MS, Depends.COMMIT: COMMIT_MS}
"""By which of them a figure is scaled."""

_ROUNDS = 7
_TIMES = 20_000
_COMMITS = 30
_TRIPS = 100


def calibrate(server: EmbeddedPostgres) -> dict[str, list[float]]:
    """A sample of each round, in less than two seconds."""
    with psycopg.connect(server.uri, autocommit=True) as conn:
        conn.execute("create table if not exists calibration (text text)")

        def insert() -> None:
            conn.execute("insert into calibration values (repeat('x', 300))", prepare=True)

        def ask() -> None:
            conn.execute("select 1", prepare=True)

        samples = [
            (_cpu_ms(), _median_us(insert, _COMMITS) / 1e3, _median_us(ask, _TRIPS)) for _ in range(_ROUNDS)
        ]
    cpu, commit, trip = (list(each) for each in zip(*samples, strict=True))
    return {CPU_MS: cpu, COMMIT_MS: commit, ROUND_TRIP_US: trip}


def _cpu_ms() -> float:
    began = time.process_time_ns()
    message = {"token": "t" * 160, "notification": {"title": "x" * 20, "body": "y" * 80}, "n": 0}
    digest = hashlib.sha256()
    for number in range(_TIMES):
        text = orjson.dumps({**message, "n": number})
        digest.update(text)
        message = orjson.loads(text)
    return (time.process_time_ns() - began) / 1e6


def _median_us(work: Callable[[], None], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter_ns()
        work()
        taken.append((time.perf_counter_ns() - began) / 1e3)
    return quantile(taken, 0.5)
