"""How soon work goes on after a fault of the database or the network; see ``tests.chaos.recovery``.

python -m tests.benchmarks.faults
"""

from __future__ import annotations

import asyncio
import os
import time

import click

from tests.benchmarks import rig
from tests.benchmarks.options import Options
from tests.benchmarks.report import Fraction, Line, Of, at_most, table
from tests.chaos import recovery

_FAULTS = ("listen", "hole", "forgetful", "restart", "crash", "away")


def part(options: Options) -> list[Line]:
    """Each in a database of its own."""
    lines = []
    for name in _FAULTS:
        rig.say(f"faults: {name}")
        (found,) = asyncio.run(recovery.measure([name], options.runs))
        what = f"{found.fault}: all sent within"
        lines.append(Line(what, "{:.2f} s", found.last, at_most(found.bound), of=Of.WORST))
    return lines


@click.command()
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
def main(runs: int) -> None:
    """How soon 50 pushes are at FCM after a fault of the database or the network."""
    began, load = time.monotonic(), os.getloadavg()[0]
    lines = part(Options(runs))
    rig.console.print(table([Fraction("faults", time.monotonic() - began, load, lines)], rig.machine()))


if __name__ == "__main__":
    main()
