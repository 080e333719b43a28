"""From the insert of a push to its request at FCM, when the queue is idle: the listener beside a bare loop.

    python -m tests.benchmarks.latency

Rows are inserted one at a time, each a random moment after the one before, into two databases of one Postgres in
turn, a block here and a block there: one is watched by ``push-listener run``, the other by the least program that
does LISTEN, claim and POST (``tests.benchmarks.bare``). Both send to the sink, which answers at once. Counted is
from just before the INSERT is sent, and from when it has returned, committed, to the arrival of the request.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any
from uuid import UUID, uuid4

import click
import psycopg
from psycopg.types.json import Jsonb

from tests.benchmarks import rig
from tests.benchmarks.rig import SinkClient

_INSERT = """
insert into push_notifications (id, device_token, title, body, data) values (%s, %s, %s, %s, %s)
"""
_WARM_UP = 30
_PAUSE = (0.02, 0.06)


class Source:
    """An application's connection, that inserts pushes and remembers when."""

    def __init__(self, dsn: str) -> None:
        self._conn: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True)
        self.inserts: dict[UUID, tuple[int, int]] = {}
        """When each INSERT was about to be sent, and when it had been committed: Unix time in nanoseconds."""

    def insert(self) -> UUID:
        push_id = uuid4()
        values = (
            push_id,
            f"token-{push_id.hex}",
            "Your ride is here",
            "Blue estate car, two minutes away",
            Jsonb({"ride": "42", "screen": "ride"}),
        )
        before = time.time_ns()
        self._conn.execute(_INSERT, values, prepare=True)
        self.inserts[push_id] = before, time.time_ns()
        return push_id

    def warm_up(self, sink: SinkClient) -> None:
        """Inserts pushes until they arrive, and then some more."""
        for _ in range(_WARM_UP):
            sink.reset()
            for _ in range(100):
                self.insert()
                time.sleep(0.1)
                if sink.count():
                    break
            else:
                raise rig.BenchmarkFailed("what was inserted never came to the sink")
        self.inserts.clear()

    def latencies(self, arrived: Mapping[UUID, int]) -> tuple[list[float], list[float]]:
        """Milliseconds to each push's arrival, from before the INSERT and from after the commit."""
        return (
            [(arrived[push_id] - before) / 1e6 for push_id, (before, _) in self.inserts.items()],
            [(arrived[push_id] - after) / 1e6 for push_id, (_, after) in self.inserts.items()],
        )

    def close(self) -> None:
        self._conn.close()


def measure(rows: int, block: int) -> dict[str, float]:
    """One run: ``rows`` through each of the two."""
    rng = random.Random()
    with ExitStack() as stack:
        server = stack.enter_context(rig.postgres())
        sink = stack.enter_context(rig.sink())
        sources = {}
        for name in ("listener", "bare"):
            dsn = rig.new_database(server, name)
            if name == "listener":
                environment = rig.listener_environment(dsn, sink.url)
                stack.enter_context(rig.process("listener", "run", environment=environment))
            else:
                url = f"{sink.url}/v1/projects/{rig.PROJECT}/messages:send"
                stack.enter_context(
                    rig.process("tests.benchmarks.bare", url, environment={"DATABASE_URL": dsn})
                )
            source = sources[name] = Source(dsn)
            stack.callback(source.close)
            source.warm_up(sink)
        sink.reset()
        for start in range(0, rows, block):
            turns = list(sources.values())
            rng.shuffle(turns)
            for source in turns:
                for _ in range(min(block, rows - start)):
                    source.insert()
                    time.sleep(rng.uniform(*_PAUSE))
        rig.until(lambda: sink.count() >= 2 * rows, "not every push has come to the sink")
        arrived = {UUID(one.push_id): one.at_ns for one in reversed(sink.report())}
        figures = {}
        for name, source in sources.items():
            from_insert, from_commit = source.latencies(arrived)
            for since, values in (("insert", from_insert), ("commit", from_commit)):
                for share in (50, 90, 99):
                    figures[f"{name}_{since}_p{share}_ms"] = rig.quantile(values, share / 100)
        figures["ratio"] = figures["listener_insert_p50_ms"] / figures["bare_insert_p50_ms"]
        return figures


@click.command()
@click.option(
    "--rows", default=300, show_default=True, type=click.IntRange(1), help="Through each of the two."
)
@click.option("--block", default=50, show_default=True, type=click.IntRange(1), help="Rows of one turn.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def main(rows: int, block: int, runs: int, as_json: bool) -> None:
    """Insert to FCM request at an idle queue, the listener beside a bare LISTEN-claim loop."""
    measured = rig.repeat(runs, lambda: measure(rows, block))
    lines = [
        (f"{name}_{since}_p{share}_ms", f"{title}, from {since}, p{share}", ".2f")
        for since in ("insert", "commit")
        for name, title in (("listener", "push-listener"), ("bare", "bare loop"))
        for share in (50, 90, 99)
    ]
    lines.append(("ratio", "ratio of the medians from insert", ".2f"))
    rig.show("Insert to FCM request, idle queue, ms", measured, lines, as_json)


if __name__ == "__main__":
    main()
