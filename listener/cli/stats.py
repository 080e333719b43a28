"""``push-listener stats``."""

from __future__ import annotations

import click
from rich.table import Table

from listener import config
from listener.cli.shared import console, print_json
from listener.postgres import stats


@click.command()
@click.option(
    "--days",
    default=7,
    show_default=True,
    type=click.IntRange(1, 3650),
    help="Number of days to count, in UTC, today included.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(days: int, as_json: bool) -> None:
    """Show the queue and recent results.

    The results of pushes that were purged still count.
    """
    found = stats.read(config.load_database().database_url.get_secret_value(), days)
    if as_json:
        print_json(found)
        return
    console().print(
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
        table.add_row(failure.status, failure.error_code, f"{failure.pushes:,}")
    return table
