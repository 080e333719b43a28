"""``push-listener stats``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from listener import interrupts
from listener.cli.shared import console, print_json
from listener.cli.terminal import plain

if TYPE_CHECKING:
    from listener.postgres.stats import Failure, Stats

_FRAME = 4
"""Lines of a table that are not its rows: title, header, rule, and a blank line."""


@click.command()
@click.option(
    "--days",
    default=7,
    show_default=True,
    type=click.IntRange(1, 3650),
    help="Number of days to count, in UTC, today included.",
)
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="Repeat after this number of seconds, until Ctrl-C; with --json, print a line each time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(days: int, watch: float | None, as_json: bool) -> None:
    """Show the queue and recent results.

    The results of pushes that were purged still count.
    """
    with interrupts.importing():
        from listener import config

    found = _readings(config.load_database().database_url.get_secret_value(), days, watch)
    if as_json:
        for each in found:
            print_json(each)
    elif watch is None:
        console().print(*map(_shown, found))
    elif (out := console()).is_terminal:
        with Live(console=out, auto_refresh=False, screen=True) as live:
            for each in found:
                live.update(_screen(each, out.height), refresh=True)
    else:
        for each in found:
            out.print(f"at {datetime.now():%Y-%m-%d %H:%M:%S}", _shown(each))


def _readings(dsn: str, days: int, watch: float | None) -> Iterator[Stats]:
    """The statistics once, or every ``watch`` seconds without end."""
    with interrupts.importing():
        from listener.postgres import stats

    yield stats.read(dsn, days)
    while watch is not None:
        time.sleep(watch)
        yield stats.read(dsn, days)


def _shown(found: Stats) -> Group:
    blank = ""
    return Group(
        _waiting(found),
        blank,
        _oldest(found),
        blank,
        _results(found),
        blank,
        _failures(found.failures),
        blank,
    )


def _screen(found: Stats, height: int) -> Table:
    """Everything on one screen: waiting and failed pushes on the left, the results on the right."""
    waiting = _waiting(found)
    # Three more lines: the oldest push, a blank line, and the number of codes that do not fit.
    room = height - _FRAME * 2 - waiting.row_count - 3
    shown = found.failures[: max(1, room)]
    left: list[RenderableType] = [waiting, "", _oldest(found), "", _failures(shown)]
    if len(shown) < len(found.failures):
        left.append(f"and {len(found.failures) - len(shown):,} more codes")
    screen = Table.grid(padding=(0, 2))
    screen.add_row(Group(*left), _results(found))
    return screen


def _oldest(found: Stats) -> str:
    if not found.oldest_due:
        return "no push is due"
    return f"the oldest has been due for {found.oldest_due:,.1f} s"


def _waiting(found: Stats) -> Table:
    table = _table("status", "pushes", title="waiting")
    for status, count in sorted(found.waiting.items()):
        table.add_row(status, f"{count:,}")
    return table


def _results(found: Stats) -> Table:
    table = _table("result", "number", title=f"the last {found.days} days" if found.days > 1 else "today")
    for name in ("sent", "delivered", "opened", "clicked", "dead", "expired", "cancelled", "retries"):
        table.add_row(name, f"{getattr(found, name):,}")
    for name, seconds in (("accepted", found.accepted_after), ("delivered", found.delivered_after)):
        table.add_row(f"mean s until {name}", "" if seconds is None else f"{seconds:,.1f}")
    return table


def _failures(shown: Sequence[Failure]) -> Table:
    table = _table("status", "error code", "pushes", title="why pushes were not sent")
    for failure in shown:
        table.add_row(failure.status, Text(plain(failure.error_code)), f"{failure.pushes:,}")
    return table


def _table(*columns: str, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(
            column, overflow="fold", justify="right" if column in ("pushes", "number") else "left"
        )
    return table
