"""``push-listener migrate``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import get_args

import click
import psycopg
from click.core import ParameterSource
from rich.table import Table

from listener import config, process
from listener.cli.shared import Failed, age, console, note, print_json
from listener.config import DatabaseSettings
from listener.postgres.connect import with_defaults
from listener.schema import export, migrate, served
from listener.schema.exposure import Way
from listener.schema.migrate import Function, FunctionState, Migration, Standing, State, structure

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
"""The modes of the parameters that would be ignored in the others."""


@click.command()
@click.option("--status", is_flag=True, help="Show which migrations are applied; change nothing.")
@click.option("--dry-run", is_flag=True, help="Print the SQL that would be run; change nothing.")
@click.option(
    "--down",
    metavar="VERSION",
    type=click.IntRange(0),
    help="Roll back to this version; 0: remove everything.",
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
    type=click.Choice(get_args(served.Adoption)),
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
    adoption: served.Adoption | None,
    as_json: bool,
) -> None:
    """Create the tables, or adopt existing ones.

    It is safe to repeat, and safe beside a running application.

    It uses LISTEN_DATABASE_URL if that is set, else DATABASE_URL; the address must be a direct or session-mode one.
    With --emit it needs no database.
    """
    _check_usage(ctx)
    if emit is not None:
        _emit(emit)
        return
    settings = config.load_database()
    dsn, expire = settings.listen_dsn, None if send_old else max_age
    if status:
        _show_status(dsn, expire, as_json=as_json)
    elif dry_run:
        _show_sql(dsn, expire)
    elif down is not None:
        _roll_back(dsn, down, discard_data=discard_data, keep_tables=keep_tables)
    else:
        _apply(dsn, expire, share_new_columns=share_new_columns)
        if adoption is not None:
            _adopt(settings, adoption)


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


def _emit(folder: Path) -> None:
    written = export.emit(folder)
    for path in written:
        click.echo(f"written {path}")
    click.echo(f"{len(written)} files written" if written else "nothing to do: every file is there")


def _show_status(dsn: str, expire_older_than: timedelta | None, *, as_json: bool) -> None:
    """Prints the migrations, their effects, changed privileges, and who can cause, change or read a push."""
    states, functions = migrate.status(dsn), migrate.function_status(dsn)
    if as_json:
        print_json(
            {
                "migrations": [
                    {
                        "version": state.migration.version,
                        "name": state.migration.name,
                        "applied_at": state.applied_at,
                        "changed": state.changed,
                    }
                    for state in states
                ],
                "functions": [
                    {
                        "name": each.function.name,
                        "revision": each.function.revision,
                        "applied_revision": each.applied_revision,
                        "applied_at": each.applied_at,
                        "standing": each.standing,
                    }
                    for each in functions
                ],
            }
        )
        return
    console().print(_migrations(states))
    for line in _differences(functions):
        note(line)
    _note_effects(dsn, expire_older_than)
    damaged = migrate.damages(dsn)
    for line in structure.lines(damaged):
        note(f"{line}. Remedy: {structure.remedy(damaged)}")
    if any(damage.kind in structure.NEEDED for damage in damaged):
        return  # what follows needs the tables
    for line in migrate.drift(dsn):
        note(f"privileges have changed: {line}. push-listener migrate sets them again")
    _show_exposures(migrate.exposures(dsn))


def _migrations(states: list[State]) -> Table:
    table = Table("version", "name", "applied at", "")
    for state in states:
        table.add_row(
            f"{state.migration.version:04d}",
            state.migration.name,
            state.applied_at.isoformat(" ", "seconds") if state.applied_at else "not applied",
            "file has changed" if state.changed else "",
        )
    return table


def _differences(functions: list[FunctionState]) -> Iterator[str]:
    """The functions that are not as in the files of this version, one line each."""
    for each in functions:
        if each.standing is Standing.CHANGED:
            yield f"{_function(each.function)} has changed. push-listener migrate replaces it"
        elif each.standing is Standing.NEWER:
            yield (
                f"the database has revision {each.applied_revision} of {each.function.name}, from a newer "
                f"push-listener. This one has revision {each.function.revision}, and leaves it as it is"
            )


def _show_exposures(ways: list[Way]) -> None:
    """Prints who can cause, change or read a push: as intended in one line, and otherwise one line each."""
    if not ways:
        return
    intended = sorted({role for way in ways if way.expected for role in way.roles})
    unintended = [_closable(way) for way in ways if not way.expected]
    click.echo("Who can cause, change or read a push: superusers, the owner of push_notifications, and")
    click.echo(f"  as push-listener intends: {', '.join(intended)} (docs/privileges.md)")
    click.echo("  in other ways:" + ("" if unintended else " nobody"))
    for line in unintended:
        click.echo(f"  - {line}")


def _closable(way: Way) -> str:
    return f"{way}. To close it: {way.remedy}"


def _show_sql(dsn: str, expire_older_than: timedelta | None) -> None:
    for state in migrate.status(dsn):
        if state.applied_at is None:
            click.echo(f"-- {_title(state.migration)}\n{state.migration.up}")
    for each in migrate.function_status(dsn):
        if each.standing is Standing.CHANGED:
            click.echo(each.function.region())
    _note_effects(dsn, expire_older_than)


def _note_effects(dsn: str, expire_older_than: timedelta | None) -> None:
    """Notes what the migrations would do to the rows and users of an adopted queue."""
    for line in migrate.foresee(dsn, expire_older_than=expire_older_than):
        note(line)


def _roll_back(dsn: str, version: int, *, discard_data: bool, keep_tables: bool) -> None:
    undone = migrate.rollback(
        dsn,
        version,
        discard_data=discard_data,
        keep_tables=keep_tables,
        report=lambda migration: click.echo(f"rolled back {_title(migration)}"),
        warn=note,
    )
    click.echo(f"{len(undone)} migrations rolled back")


def _apply(dsn: str, expire_older_than: timedelta | None, *, share_new_columns: bool) -> None:
    repairs: list[str] = []
    replaced: list[Function] = []

    def warn(line: str) -> None:
        repairs.append(line)
        note(line)

    applied = migrate.apply(
        dsn,
        expire_older_than=expire_older_than,
        share_new_columns=share_new_columns,
        report=lambda migration: click.echo(f"applied {_title(migration)}"),
        replaced=replaced.append,
        warn=warn,
    )
    for function in replaced:
        click.echo(f"replaced {_function(function)}")
    if applied:
        click.echo(f"{len(applied)} migrations applied")
    elif replaced:
        click.echo(f"{len(replaced)} functions replaced")
    elif repairs:
        click.echo("no migration to apply; what the notes above name has been repaired")
    else:
        click.echo("nothing to do: the database is up to date")
    for way in migrate.exposures(dsn):
        if not way.expected:
            note(_closable(way))


def _title(migration: Migration) -> str:
    return f"{migration.version:04d}_{migration.name}"


def _function(function: Function) -> str:
    return f"{function.name} (revision {function.revision})"


def _adopt(settings: DatabaseSettings, adoption: served.Adoption) -> None:
    """Decides about the waiting pushes of any database: one restored in place does not look like a copy."""
    if adoption == "expire":
        migrate.refuse_while_in_use(settings.listen_dsn)

    async def adopt() -> int:
        conn = await psycopg.AsyncConnection.connect(
            with_defaults(settings.listen_dsn), autocommit=True, application_name=migrate.APPLICATION_NAME
        )
        async with conn:
            dsn = settings.database_url.get_secret_value()
            return await served.adopt(conn, dsn, settings.installation, adoption)

    try:
        expired = process.run(adopt())
    except served.CannotExpire as refused:
        raise Failed(str(refused)) from None
    if adoption == "expire":
        click.echo(f"{expired:,} waiting pushes have expired")
    else:
        click.echo("the waiting pushes will be sent")
