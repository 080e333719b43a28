"""How long it takes to be back at work after each fault.

    python -m tests.chaos.recovery --json

measures, with real processes and a Postgres in memory, how long pushes wait when something has just broken.
"""

from __future__ import annotations

import asyncio
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import click
import orjson
from rich.console import Console
from rich.table import Table

from listener.wakeup.doorbell import STEADY_AFTER_S
from tests.chaos.fcm import Exchange
from tests.chaos.world import LEASE, Listener, World, world

_PATIENCE = 90.0
_HELD = 50
_STEADY = STEADY_AFTER_S + 0.5
"""Seconds after the start of Postgres after which a worker takes others for dead."""


@dataclass(slots=True)
class Recovery:
    """One fault, measured several times: seconds until the first push was at FCM, and until the last was."""

    fault: str
    bound: float
    """Seconds within which the last one must be there; see docs/guarantees.md."""
    first: list[float]
    last: list[float]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "fault": self.fault,
            "bound_s": self.bound,
            "runs": len(self.last),
            "first_s": {"median": statistics.median(self.first), "max": max(self.first)},
            "last_s": {"median": statistics.median(self.last), "max": max(self.last)},
        }


class Arrivals:
    """Requests to FCM, as they come."""

    def __init__(self, made: World) -> None:
        self._world = made
        self._event = asyncio.Event()
        made.on_request = lambda _: self._event.set()

    async def until(self, count: int, wanted: Callable[[Exchange], bool] = lambda _: True) -> list[Exchange]:
        """The first so many that are wanted, each push counted once."""
        first: dict[object, Exchange] = {}
        seen = 0
        async with asyncio.timeout(_PATIENCE):
            while True:
                self._event.clear()
                new = self._world.fcm.exchanges[seen:]
                seen += len(new)
                for exchange in new:
                    if wanted(exchange):
                        first.setdefault(exchange.push_id, exchange)
                if len(first) >= count:
                    return list(first.values())
                await self._event.wait()


async def insert(made: World, count: int, prefix: str) -> None:
    """Puts in so many rows, to devices whose names begin so."""
    async with await made.admin() as conn:
        await conn.execute(
            "insert into push_notifications (device_token, title) "
            "select %s || n, 't' from generate_series(1, %s) n",
            (prefix, count),
        )


async def _ready(made: World, **settings: str) -> Listener:
    listener = await made.start(settings=settings)
    await listener.program.said("ready")
    return listener


def _times(fault: str, bound: float, since: float, found: list[Exchange]) -> Recovery:
    waits = sorted(exchange.began - since for exchange in found)
    return Recovery(fault, bound, [waits[0]], [waits[-1]])


async def killed(made: World, unique: str) -> Recovery:
    """SIGKILL of a worker that holds rows: until they are in another's hands."""
    slow = made.fcm.add_fault(f"slow,token_prefix={unique},latency_ms=60000")
    settings = {"fcm_request_timeout": "100", "lease": "300"}
    first = await _ready(made, **settings)
    arrivals = Arrivals(made)
    await insert(made, _HELD, unique)
    await arrivals.until(_HELD, lambda e: e.port == first.port)
    other = await _ready(made, **settings)
    async with await made.admin() as conn:
        await conn.execute(
            "select pg_sleep_until(pg_postmaster_start_time() + make_interval(secs => %s))", (_STEADY,)
        )
    made.fcm.remove_fault(slow)
    since = time.time()
    await first.kill()
    found = await arrivals.until(_HELD, lambda e: e.port == other.port and e.target.startswith(unique))
    await other.end()
    return _times("SIGKILL of a worker that holds rows", 2.0, since, found)


async def stopped(made: World, unique: str) -> Recovery:
    """SIGSTOP: a worker that neither works nor dies keeps its rows until their lease ends."""
    slow = made.fcm.add_fault(f"slow,token_prefix={unique},latency_ms=60000")
    first, other = await _ready(made), await _ready(made)
    arrivals = Arrivals(made)
    await insert(made, _HELD, unique)
    held = await arrivals.until(_HELD)
    mine = [e for e in held if e.port == first.port]
    victim, saver = (first, other) if len(mine) * 2 > _HELD else (other, first)
    count = max(len(mine), _HELD - len(mine))
    since = time.time()
    victim.program.signal(signal.SIGSTOP)
    made.fcm.remove_fault(slow)
    found = await arrivals.until(
        count,
        lambda e: e.port == saver.port and e.began > since + 10 and e.target.startswith(unique),
    )
    victim.program.signal(signal.SIGCONT)
    await victim.end()
    await saver.end()
    return _times("SIGSTOP of a worker that holds rows", LEASE + 5.0, since, found)


async def deaf(made: World, unique: str) -> Recovery:
    """The LISTEN backend is terminated, and a row is inserted at once."""
    listener = await _ready(made)
    arrivals = Arrivals(made)
    assert await made.terminate() == 1
    await insert(made, 1, unique)
    since = time.time()
    found = await arrivals.until(1, lambda e: e.target.startswith(unique))
    await listener.end()
    return _times("LISTEN backend terminated", 5.0, since, found)


def _hole(name: str, bound: float, *, forget: bool) -> Callable[[World, str], Awaitable[Recovery]]:
    async def measure(made: World, unique: str) -> Recovery:
        listener = await _ready(made)
        arrivals = Arrivals(made)
        listener.postgres.hole()
        await insert(made, _HELD, unique)
        await asyncio.sleep(12.0)  # longer than heartbeat, proof and attempts to connect
        since = time.time()
        listener.postgres.heal(forget=forget)
        found = await arrivals.until(_HELD, lambda e: e.target.startswith(unique))
        await listener.end()
        return _times(name, bound, since, found)

    return measure


def _restart(name: str, *, crash: bool) -> Callable[[World, str], Awaitable[Recovery]]:
    async def measure(made: World, unique: str) -> Recovery:
        listener = await _ready(made)
        arrivals = Arrivals(made)
        await asyncio.to_thread(made.server.stop, "immediate" if crash else "fast")
        await asyncio.sleep(3.0)
        await asyncio.to_thread(made.server.start)
        since = time.time()
        await insert(made, _HELD, unique)
        found = await arrivals.until(_HELD, lambda e: e.target.startswith(unique))
        await listener.end()
        return _times(name, 5.0, since, found)

    return measure


async def away(made: World, unique: str) -> Recovery:
    """FCM does not answer for a while."""
    listener = await _ready(made)
    arrivals = Arrivals(made)
    await made.fcm.stop()
    await insert(made, _HELD, unique)
    await asyncio.sleep(12.0)
    await made.fcm.start()
    since = time.time()
    found = await arrivals.until(_HELD, lambda e: e.target.startswith(unique))
    await listener.end()
    return _times("FCM away", 10.0, since, found)


MEASURES: dict[str, Callable[[World, str], Awaitable[Recovery]]] = {
    "kill": killed,
    "stop": stopped,
    "listen": deaf,
    "hole": _hole("black hole to Postgres", 5.0, forget=False),
    "forgetful": _hole("black hole to Postgres that forgets connections", 5.0, forget=True),
    "restart": _restart("Postgres restarted (fast)", crash=False),
    "crash": _restart("Postgres restarted (immediate)", crash=True),
    "away": away,
}


async def measure_in(made: World, name: str, unique: str) -> Recovery:
    """One of these, with rows to devices whose names begin with ``unique``. It ends the listeners that it starts."""
    try:
        return await MEASURES[name](made, unique)
    except TimeoutError:
        said = "\n".join(f"{each.name}:\n{each.program.err[-2000:]}" for each in made.processes)
        raise AssertionError(f"{name}: work did not go on within {_PATIENCE:g} s\n{said}") from None


async def measure(names: list[str], runs: int) -> list[Recovery]:
    """Each of these, so many times, each in a database of its own."""
    found = []
    for name in names:
        times: Recovery | None = None
        for number in range(1 if name == "stop" else runs):
            async with world(audited=False) as made:
                one = await measure_in(made, name, f"{name}-{number}-")
            if times is None:
                times = one
            else:
                times.first += one.first
                times.last += one.last
        assert times is not None
        found.append(times)
    return found


def show(found: list[Recovery], console: Console) -> None:
    """As a table."""
    table = Table(title="Seconds from the fault (or its end) until pushes were at FCM", title_justify="left")
    for column in (
        "fault",
        "runs",
        "first, median",
        "first, longest",
        "last, median",
        "last, longest",
        "bound",
    ):
        table.add_column(column, justify="left" if column == "fault" else "right")
    for one in found:
        table.add_row(
            one.fault,
            str(len(one.last)),
            *(f"{f(values):.2f}" for values in (one.first, one.last) for f in (statistics.median, max)),
            f"{one.bound:g}",
        )
    console.print(table)


@click.command()
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1))
@click.option("--only", multiple=True, type=click.Choice(list(MEASURES)), help="Default: all of them.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def main(runs: int, only: tuple[str, ...], as_json: bool) -> None:
    """How long work stands still when something has broken."""
    found = asyncio.run(measure(list(only or MEASURES), runs))
    if as_json:
        sys.stdout.buffer.write(
            orjson.dumps([one.as_dict() for one in found], option=orjson.OPT_INDENT_2) + b"\n"
        )
    else:
        show(found, Console(highlight=False, width=120))


if __name__ == "__main__":
    main()
