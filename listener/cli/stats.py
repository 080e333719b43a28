"""``push-listener stats``."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from listener import config
from listener.cli.shared import console, print_json
from listener.cli.terminal import plain
from listener.postgres import stats


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
    help="Show them anew so often, until Ctrl-C; with --json, a line each time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(days: int, watch: float | None, as_json: bool) -> None:
    """Show the queue and recent results.

    The results of pushes that were purged still count.
    """
    found = _readings(config.load_database().database_url.get_secret_value(), days, watch)
    if as_json:
        for each in found:
            print_json(each)
    elif watch is None:
        console().print(*map(_shown, found))
    else:
        with Live(console=console(), auto_refresh=False) as live:
            for each in found:
                live.update(_shown(each), refresh=True)


def _readings(dsn: str, days: int, watch: float | None) -> Iterator[stats.Stats]:
    """The statistics once, or every ``watch`` seconds for good."""
    yield stats.read(dsn, days)
    while watch is not None:
        time.sleep(watch)
        yield stats.read(dsn, days)


def _shown(found: stats.Stats) -> Group:
    return Group(
        _waiting(found),
        f"the oldest has been due for {found.oldest_due:,.1f} s",
        _results(found),
        _failures(found),
    )


def _waiting(found: stats.Stats) -> Table:
    table = Table("status", "pushes", title="waiting")
    for status, count in sorted(found.waiting.items()):
        table.add_row(status, f"{count:,}")
    return table


def _results(found: stats.Stats) -> Table:
    table = Table("", "number", title=f"the last {found.days} days" if found.days > 1 else "today")
    for name in ("sent", "delivered", "opened", "clicked", "dead", "expired", "cancelled", "retries"):
        table.add_row(name, f"{getattr(found, name):,}")
    for name, seconds in (("accepted", found.accepted_after), ("delivered", found.delivered_after)):
        table.add_row(f"mean seconds until {name}", "" if seconds is None else f"{seconds:,.1f}")
    return table


def _failures(found: stats.Stats) -> Table:
    table = Table("status", "error code", "pushes", title="why pushes were not sent")
    for failure in found.failures:
        table.add_row(failure.status, Text(plain(failure.error_code)), f"{failure.pushes:,}")
    return table
