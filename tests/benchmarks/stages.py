"""Where the time goes from the insert of a push to its request, at a rate.

    python -m tests.benchmarks.stages --rate 2000 --flush-ms 0 --flush-ms 5

pgbench inserts as in ``tests.benchmarks.latency`` and logs when each insert was committed; the listener notes when each
claim was begun and answered (``tests.benchmarks.watched``); the sink notes when each request came. So the time of each
push is cut into four:

- commit: from the begin of the INSERT until the client hears of the commit, or a claim that has found the row begins
- until the claim: from there until the claim that has found the row begins, by a notification or by the next poll
- claim: until the claim is answered
- sending: until the request has come

Beside the quantiles of each, the last column of the table says what the slowest hundredth of the pushes spent on each,
on average.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import click
import orjson
from rich.table import Table

from listener.demo.embedded import EmbeddedPostgres
from tests.benchmarks import latency, queues, rig
from tests.benchmarks.options import setting
from tests.benchmarks.queues import Push
from tests.benchmarks.report import quantile

STAGES = ("commit", "until the claim", "claim", "sending")
_NUMBERED = latency.STAMPED.replace(
    "substr(md5(random()::text), 1, 8)",
    "lpad(to_hex((:client_id)::bigint * 16777216 + (:k)::bigint), 8, '0')",
)
"""SQL: an id that also tells which client of pgbench has made it, and which of its pushes it is."""

Claim = tuple[int, int, Sequence[str]]
"""When it was begun and answered, and what it brought."""


def number_of(push_id: str) -> tuple[int, int]:
    """The client that has made an id, and which of its pushes it is, from 1 on."""
    return divmod(int(push_id.replace("-", "")[16:24], 16), 1 << 24)


def read_log(lines: Iterable[str]) -> dict[tuple[int, int], int]:
    """When each push of each client was committed, in nanoseconds of Unix time, from pgbench's log."""
    commits: dict[tuple[int, int], int] = {}
    counts: dict[int, int] = {}
    for line in lines:
        client, _, _, _, seconds, microseconds, *_ = map(int, line.split())
        counts[client] = counts.get(client, 0) + 1
        commits[client, counts[client]] = seconds * 1_000_000_000 + microseconds * 1000
    return commits


def cut(
    arrived_ns: Mapping[str, int], commits: Mapping[tuple[int, int], int], claims: Sequence[Claim]
) -> list[dict[str, float]]:
    """Milliseconds of each push in each stage."""
    found = []
    claimed = {push_id: (began, ended) for began, ended, ids in claims for push_id in ids}
    for push_id, arrival in arrived_ns.items():
        stamp = latency.stamp_us(push_id)
        if stamp is None:
            continue
        inserted = stamp * 1000
        began, ended = claimed[push_id]
        # A claim that waits for a connection may begin before the INSERT whose row it finds.
        began = max(began, inserted)
        at = (inserted, min(commits[number_of(push_id)], began), began, ended, arrival)
        found.append(
            {stage: (until - since) / 1e6 for stage, since, until in zip(STAGES, at, at[1:], strict=False)}
        )
    return found


def measure(
    server: EmbeddedPostgres, rate: int, seconds: int, settings: Mapping[str, str] | None = None
) -> list[dict[str, float]]:
    """One run, in a new database."""
    with tempfile.TemporaryDirectory() as directory, rig.sink() as sink:
        queue = queues.install(queues.LISTENER, server, "stages")
        claims, log = Path(directory, "claims"), Path(directory, "log")
        environment = rig.listener_environment(queue.dsn, sink, **(settings or {}))
        with (
            rig.module("tests.benchmarks.watched", str(claims), environment=environment) as worker,
            queue.connect() as conn,
        ):
            source = latency.Source(queue)
            source.warm_up(sink)
            source.close()
            sink.reset()
            rig.pgbench(
                queue.dsn,
                queue.insert(Push(id=_NUMBERED)),
                clients=latency.CLIENTS,
                seconds=seconds,
                rate=rate,
                log=log,
            )
            rig.until(lambda: queue.pending(conn) == 0, "not all is sent", every=0.1, by=worker)
            arrived = {one.push_id: one.at_ns for one in reversed(sink.report())}
        commits = read_log(
            line for file in log.parent.glob("log.*") for line in file.read_text().splitlines()
        )
        return cut(arrived, commits, [orjson.loads(line) for line in claims.read_bytes().splitlines()])


def show(title: str, pushes: Sequence[Mapping[str, float]]) -> Table:
    """The stages of all pushes, and of the slowest hundredth."""
    table = Table(f"ms, {title}", "median", "90 %", "99 %", "slowest 1 %", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    slowest = sorted(pushes, key=lambda push: sum(push.values()))[-max(1, len(pushes) // 100) :]

    def row(what: str, values: Sequence[float], of_slowest: float) -> None:
        shares = (f"{quantile(values, share):.2f}" for share in (0.5, 0.9, 0.99))
        table.add_row(what, *shares, f"{of_slowest:.2f}")

    for stage in STAGES:
        row(stage, [push[stage] for push in pushes], fmean(push[stage] for push in slowest))
    table.add_section()
    row("insert to request", [sum(p.values()) for p in pushes], fmean(sum(p.values()) for p in slowest))
    return table


@click.command()
@click.option("--rate", default=2000, show_default=True, type=click.IntRange(1), help="Inserts a second.")
@click.option("--seconds", default=8, show_default=True, type=click.IntRange(1))
@click.option(
    "--flush-ms", "disks", multiple=True, type=float, default=(0.0, latency.FLUSH_MS), show_default=True
)
@setting
def main(rate: int, seconds: int, disks: tuple[float, ...], settings: dict[str, str]) -> None:
    """Where the time goes from insert to request."""
    rig.console.print(rig.machine())
    for flush_ms in disks:
        with rig.postgres(**rig.slow_disk(flush_ms)) as server:
            pushes = measure(server, rate, seconds, settings)
        rig.console.print(show(f"{rate:,} a second, {flush_ms:g} ms more to commit", pushes))


if __name__ == "__main__":
    main()
