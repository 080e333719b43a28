"""Real processes under every fault we can cause, and a checker that goes over every row.

python -m tests.chaos --seconds 600 --seed 7
"""

from __future__ import annotations

import asyncio
import sys

import click
from rich.console import Console

from tests.chaos.run import run, show


@click.command()
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(40), help="Of faults.")
@click.option("--seed", default=1, show_default=True, help="Decides which fault comes when, and how bad.")
@click.option("--quiet", is_flag=True, help="Say nothing on the way.")
def main(seconds: float, seed: int, quiet: bool) -> None:
    """Several listeners, writers that never stop, and a fault every other second."""
    console = Console(highlight=False, width=120)
    result = asyncio.run(run(seed, seconds, (lambda _: None) if quiet else console.print))
    show(result, console)
    sys.exit(1 if result.findings.violations else 0)


if __name__ == "__main__":
    main()
