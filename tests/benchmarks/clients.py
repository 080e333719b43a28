"""Pushes a second that an application puts in the queue, by each way in.

    python -m tests.benchmarks.clients

10,000 pushes to devices (1,000 where each is a call of its own), each way to an empty queue of one Postgres, in
turn; every commit waits for the disk:

- ``insert, one by one``: psycopg, one connection, one INSERT and commit for each
- ``Direct.enqueue``: ``PushClient.enqueue`` over ``Direct``, four at a time
- ``Direct.enqueue_each``: all of them in one call of the client
- ``Rest.enqueue``, ``Rest.enqueue_each``: likewise over HTTP, to the tests' stand-in for PostgREST
- ``supabase-py, insert``: ``await supabase.table("push_notifications").insert([...]).execute()``, 1000 rows in each,
  which PostgREST inserts with one statement. It checks nothing, and one bad row refuses all.

The stand-in is Python and shares the cores; PostgREST itself is faster. What is shown is what the client costs, not
what a project on Supabase reaches.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Coroutine
from typing import Any

import click
import psycopg
from postgrest.types import ReturnMethod
from psycopg.rows import scalar_row
from rich.table import Table
from supabase import acreate_client

from listener.client import Direct, Notification, Push, PushClient, Rest, Transport
from tests.benchmarks import rig
from tests.support import rest
from tests.support.postgres import Database, Server, Template, programs

_AT_ONCE = 4
_ROWS = 1000
_SINGLE = ("insert, one by one", "Direct.enqueue", "Rest.enqueue")
_SINGLES = 1000

Way = Callable[[list[Push]], Coroutine[Any, Any, None]]


def pushes(count: int) -> list[Push]:
    """Pushes as an application would make them, each with a token of its own of the usual length."""
    return [
        Push(
            token=f"{number:022d}:APA91b{'x' * 128}",
            notification=Notification("Your order is ready", "Come and get it while it is hot"),
            data={"order": str(number), "screen": "orders"},
        )
        for number in range(count)
    ]


def _insert_one_by_one(dsn: str) -> Way:
    async def run(made: list[Push]) -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            for push in made:
                row = push.columns()
                await conn.execute(
                    "insert into public.push_notifications (device_token, title, body, data) values (%s, %s, %s, %s)",
                    (row["device_token"], row["title"], row["body"], json.dumps(row["data"])),
                )

    return run


def _enqueue(transport: Callable[[], Transport]) -> Way:
    async def run(made: list[Push]) -> None:
        left = iter(made)
        async with PushClient(transport()) as client:

            async def one_after_the_other() -> None:
                for push in left:
                    await client.enqueue(push)

            await asyncio.gather(*(one_after_the_other() for _ in range(_AT_ONCE)))

    return run


def _enqueue_each(transport: Callable[[], Transport]) -> Way:
    async def run(made: list[Push]) -> None:
        async with PushClient(transport()) as client:
            (await client.enqueue_each(made)).raise_for_failures()

    return run


def _supabase_insert(server: rest.RestServer) -> Way:
    async def run(made: list[Push]) -> None:
        client = await acreate_client(server.url, rest.SERVICE_KEY)
        rows: list[Any] = [push.columns() for push in made]
        for start in range(0, len(rows), _ROWS):
            chunk = rows[start : start + _ROWS]
            await client.table("push_notifications").insert(chunk, returning=ReturnMethod.minimal).execute()

    return run


def measure(count: int, rounds: int) -> dict[str, list[float]]:
    """Pushes a second of each way, so many times in turn."""
    bin_dir = programs(rig.POSTGRES)
    if bin_dir is None:
        raise rig.BenchmarkFailed(f"PostgreSQL {rig.POSTGRES} is not here: see CONTRIBUTING.md")
    with (
        Server(rig.POSTGRES, bin_dir, settings={}) as postgres,
        postgres.database(Template.MIGRATED) as database,
        rest.serving(database) as server,
    ):
        ways = _ways(database, server)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            for name in ways if number % 2 == 0 else reversed(ways):
                rig.say(f"clients: {name}, round {number + 1}")
                found[name].append(_rate(database, name, ways[name], count))
    return found


def _ways(database: Database, server: rest.RestServer) -> dict[str, Way]:
    def direct() -> Direct:
        return Direct(database.dsn)

    def over_rest() -> Rest:
        return Rest(server.url, rest.SECRET_KEY)

    return {
        "insert, one by one": _insert_one_by_one(database.dsn),
        "Direct.enqueue": _enqueue(direct),
        "Direct.enqueue_each": _enqueue_each(direct),
        "Rest.enqueue": _enqueue(over_rest),
        "Rest.enqueue_each": _enqueue_each(over_rest),
        "supabase-py, insert": _supabase_insert(server),
    }


def _rate(database: Database, name: str, way: Way, count: int) -> float:
    if name in _SINGLE:
        count = min(count, _SINGLES)
    made = pushes(count)
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute("truncate public.push_notifications, public.push_delivery_logs")
        conn.execute("analyze public.push_notifications")
    with psycopg.connect(database.superuser_dsn, autocommit=True) as conn:
        conn.execute("checkpoint")
    began = time.perf_counter()
    asyncio.run(way(made))
    seconds = time.perf_counter() - began
    with psycopg.connect(database.dsn) as conn, conn.cursor(row_factory=scalar_row) as cursor:
        there = cursor.execute(
            "select count(*) from public.push_notifications where status = 'pending'"
        ).fetchone()
    if there != count:
        raise rig.BenchmarkFailed(f"{there} of {count} pushes are in the queue")
    return count / seconds


@click.command()
@click.option("--pushes", "count", default=10_000, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
def main(count: int, rounds: int) -> None:
    """Pushes a second by each way in."""
    found = measure(count, rounds)
    single = statistics.median(found["insert, one by one"])
    table = Table(
        "way in", "pushes/s", "least to most", "to single inserts", title=f"{count:,} pushes: {rig.machine()}"
    )
    for name, rates in found.items():
        median = statistics.median(rates)
        table.add_row(
            name, f"{median:,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}", f"{median / single:.1f}"
        )
    rig.console.print(table)


if __name__ == "__main__":
    main()
