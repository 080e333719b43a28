"""``push-listener purge``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from listener import interrupts
from listener.cli.shared import Failed, age, console, note, print_json

if TYPE_CHECKING:
    from listener.schema.retention import Purged, Step


@click.command()
@click.option(
    "--older-than",
    "min_age",
    required=True,
    type=age,
    help="Age of a push since its last change, such as 30d, 12h or 8w.",
)
@click.option(
    "--dead", is_flag=True, help="Delete dead pushes too, which are otherwise kept for you to requeue."
)
@click.option("--telemetry", is_flag=True, help="Delete processed rows of telemetry_logs too.")
@click.option(
    "--batch",
    default=5000,
    show_default=True,
    type=click.IntRange(1, 50_000),
    help="Maximum number of pushes deleted in one transaction.",
)
@click.option("--dry-run", is_flag=True, help="Count only; change nothing. This can take long.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def command(
    min_age: timedelta, dead: bool, telemetry: bool, batch: int, dry_run: bool, as_json: bool
) -> None:
    """Delete pushes that finished long ago.

    It deletes sent, delivered, expired and cancelled pushes with their delivery logs, logs whose push no longer
    exists, and the records of workers that stopped as long ago. It works in short transactions with pauses between
    them, so it is safe beside a running service. The statistics do not change. To have the service do this by itself,
    set RETENTION.

    It uses LISTEN_DATABASE_URL if that is set, else DATABASE_URL.
    """
    with interrupts.importing():
        import psycopg

        from listener import config, process

    dsn = config.load_database().listen_dsn
    keepers: list[str] = []
    if dry_run:
        found = process.run(_count(dsn, min_age, dead=dead, telemetry=telemetry))
    else:
        try:
            found, keepers = process.run(
                _delete(dsn, min_age, dead=dead, telemetry=telemetry, batch=batch, quiet=as_json)
            )
        except psycopg.errors.ForeignKeyViolation as error:
            raise Failed(
                f"{error.diag.schema_name}.{error.diag.table_name} refers to pushes that would be deleted "
                f"(constraint {error.diag.constraint_name}): give that constraint ON DELETE CASCADE or SET NULL"
            ) from None
    if as_json:
        print_json({**asdict(found), "dry_run": dry_run})
    else:
        verb = "would be deleted" if dry_run else "deleted"
        rows = f"{found.pushes:,} pushes, {found.logs:,} log rows"
        more = f", {found.telemetry:,} telemetry rows" if telemetry else ""
        click.echo(f"{verb}: {rows}{more}, {found.workers:,} records of workers that stopped")
    if found.kept:
        note(
            f"{found.kept:,} pushes are still there: a trigger of push_notifications keeps them ({', '.join(keepers)})"
        )


async def _count(dsn: str, min_age: timedelta, *, dead: bool, telemetry: bool) -> Purged:
    from listener.schema import retention

    async with await retention.connect(dsn) as conn:
        before = await retention.moment(conn, min_age)
        return await retention.count(conn, before, dead=dead, telemetry=telemetry)


async def _delete(
    dsn: str, min_age: timedelta, *, dead: bool, telemetry: bool, batch: int, quiet: bool
) -> tuple[Purged, list[str]]:
    """Deletes; returns the numbers of rows, and the triggers that kept some rows from being deleted.

    Unless ``quiet`` it shows a progress bar for each stage, or a line where there is no terminal.
    """
    from rich.progress import Progress

    from listener.schema import retention
    from listener.schema.retention import Purged

    out, deleted = console(), Purged()
    async with await retention.connect(dsn) as conn:
        before = await retention.moment(conn, min_age)
        expected = await retention.count_pushes(conn, before, dead=dead)
        stages: dict[str, AsyncIterator[Step]] = {
            "pushes": retention.pushes(conn, before, dead=dead, batch=batch, expected=expected),
            "logs without a push": retention.orphans(conn, before, batch=batch),
        }
        if telemetry:
            stages["telemetry"] = retention.telemetry(conn, before)
        with Progress(console=out, disable=quiet or not out.is_terminal) as bars:
            for stage, steps in stages.items():
                bar = bars.add_task(stage, total=1.0)
                async for step in retention.gently(steps, rest=1.0):
                    deleted += step.gone
                    bars.update(bar, completed=step.share)
                bars.update(bar, completed=1.0)
                if not (quiet or out.is_terminal):
                    click.echo(f"{stage}: done")
        deleted += Purged(workers=await retention.workers(conn, before))
        return deleted, await retention.keepers(conn) if deleted.kept else []
