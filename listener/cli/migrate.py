"""``push-listener migrate``: its options. ``migrating`` does the work, so that --help does not import psycopg."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from listener import interrupts
from listener.cli.shared import ADOPTIONS, age

if TYPE_CHECKING:
    from listener.schema.served import Adoption

_APPLY = "apply"
_MODES = {"status": "--status", "dry_run": "--dry-run", "down": "--down", "emit": "--emit"}
"""The parameters that choose what the command does; without one of them it applies the migrations."""
_HAS_EFFECT_IN = {
    "as_json": {"status"},
    "discard_data": {"down"},
    "keep_tables": {"down"},
    "share_new_columns": {_APPLY},
    "adoption": {_APPLY},
}
"""The modes in which each parameter has an effect. The other modes would ignore the parameter."""


@click.command()
@click.option("--status", is_flag=True, help="Show which migrations are applied; change nothing.")
@click.option("--dry-run", is_flag=True, help="Print the SQL that would be run; change nothing.")
@click.option(
    "--down",
    metavar="VERSION",
    type=click.IntRange(0),
    help="Roll back to this version, so that it is the newest that stays; 0: remove everything.",
)
@click.option(
    "--emit",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Write the migrations and their pgTAP tests into this folder `supabase`, for the Supabase CLI.",
)
@click.option(
    "--expire-older-than",
    "max_age",
    type=age,
    default="1d",
    show_default=True,
    help="Let waiting rows of an adopted queue expire if they are older than this (12h, 7d), instead of sending them.",
)
@click.option(
    "--share-new-columns",
    is_flag=True,
    help="Let users who can read every column of an adopted table read the new ones too, so that their select * "
    "still works.",
)
@click.option("--send-old", is_flag=True, help="Send waiting rows of an adopted queue, however old they are.")
@click.option(
    "--discard-data",
    is_flag=True,
    help="With --down: drop the tables that push-listener created, with their rows, and delete rows that an adopted "
    "table could not hold before.",
)
@click.option(
    "--keep-tables",
    is_flag=True,
    help="With --down: leave the tables that push-listener created, with their rows. A later migrate adopts them.",
)
@click.option(
    "--adopt-copy",
    "adoption",
    type=click.Choice(ADOPTIONS),
    help="Decide before the next run about the pushes that wait: let all of them expire, or send them. This works in "
    "any database, copy or not.",
)
@click.option("--json", "as_json", is_flag=True, help="With --status: print JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    status: bool,
    dry_run: bool,
    down: int | None,
    emit: Path | None,
    max_age: timedelta,
    share_new_columns: bool,
    send_old: bool,
    discard_data: bool,
    keep_tables: bool,
    adoption: Adoption | None,
    as_json: bool,
) -> None:
    """Create the tables, or adopt existing ones.

    It is safe to repeat, and safe beside a running application.

    It uses LISTEN_DATABASE_URL if that is set, else DATABASE_URL; the address must be a direct or session-mode one.
    With --emit it needs no database.
    """
    _check_usage(ctx)
    with interrupts.importing():
        from listener import config
        from listener.cli import migrating

    if emit is not None:
        migrating.emit(emit)
        return
    settings = config.load_database()
    dsn, expire = settings.listen_dsn, None if send_old else max_age
    if status:
        migrating.show_status(dsn, expire, as_json=as_json)
    elif dry_run:
        migrating.show_sql(dsn, expire)
    elif down is not None:
        migrating.roll_back(dsn, down, discard_data=discard_data, keep_tables=keep_tables)
    else:
        migrating.apply(dsn, expire, share_new_columns=share_new_columns)
        if adoption is not None:
            migrating.adopt(settings, adoption)


def _check_usage(ctx: click.Context) -> None:
    """Raises UsageError for two modes at once, and for a parameter that the chosen mode ignores."""
    given = [
        param
        for param in ctx.command.params
        if param.name and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    ]
    modes = [param.name for param in given if param.name in _MODES]
    if len(modes) > 1:
        raise click.UsageError(f"{' and '.join(_MODES[mode] for mode in modes)} exclude each other")
    mode = modes[0] if modes else _APPLY
    for param in given:
        allowed = _HAS_EFFECT_IN.get(param.name, {mode})
        if mode in allowed:
            continue
        if mode == _APPLY:
            raise click.UsageError(f"{param.opts[0]} needs {' or '.join(_MODES[each] for each in allowed)}")
        raise click.UsageError(f"{param.opts[0]} does not go with {_MODES[mode]}")
