"""How soon work goes on after a fault of the database or the network; see ``tests.chaos.recovery``."""

from __future__ import annotations

import asyncio

from tests.benchmarks import rig
from tests.benchmarks.options import Options
from tests.benchmarks.report import Line, Of, at_most
from tests.chaos import recovery

_FAULTS = ("listen", "hole", "restart", "crash")


def part(options: Options) -> list[Line]:
    """Each in a database of its own."""
    lines = []
    for name in _FAULTS:
        rig.say(f"faults: {name}")
        (found,) = asyncio.run(recovery.measure([name], options.runs))
        lines.append(
            Line(f"{found.fault}: all sent within", "{:.2f} s", found.last, at_most(5.0), of=Of.WORST)
        )
    return lines
