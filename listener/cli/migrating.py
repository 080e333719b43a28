"""What ``push-listener migrate`` does and prints, mode by mode."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import click
import psycopg
from rich.table import Table

from listener import process
from listener.cli.shared import Failed, console, note, print_json
from listener.config import DatabaseSettings
from listener.postgres.connect import with_defaults
from listener.schema import export, migrate, served
from listener.schema.exposure import Way
from listener.schema.migrate import Function, FunctionState, Migration, Standing, State, structure

_NOTHING_TO_DO = "nothing to do: the database is up to date"


def emit(folder: Path) -> None:
    written = export.emit(folder)
    for path in written:
        click.echo(f"written {path}")
    click.echo(f"{len(written)} files written" if written else "nothing to do: every file is there")


def show_status(dsn: str, expire_older_than: timedelta | None, *, as_json: bool) -> None:
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
    deviations, is_whole = _deviations(dsn)
    for line in deviations:
        note(line)
    if is_whole:
        _show_exposures(migrate.exposures(dsn))


def _deviations(dsn: str) -> tuple[list[str], bool]:
    """What differs from what push-listener has created, one line each; and whether everything that it needs exists."""
    damaged = migrate.damages(dsn)
    lines = [f"{line}. Remedy: {structure.remedy(damaged)}" for line in structure.lines(damaged)]
    if any(damage.kind in structure.NEEDED for damage in damaged):
        return lines, False  # the privileges cannot be read without the tables
    lines += [
        f"privileges have changed: {line}. push-listener migrate sets them again"
        for line in migrate.drift(dsn)
    ]
    return lines, True


def _migrations(states: list[State]) -> Table:
    table = Table("version", "name", "applied at", "file")
    for state in states:
        table.add_row(
            f"{state.migration.version:04d}",
            state.migration.name,
            state.applied_at.isoformat(" ", "seconds") if state.applied_at else "not applied",
            "has changed" if state.changed else "as applied" if state.applied_at else "",
        )
    return table


def _differences(functions: list[FunctionState]) -> Iterator[str]:
    """The functions that differ from the files of this version, one line each."""
    for each in functions:
        if each.standing is Standing.CHANGED:
            yield f"{_function(each.function)} has changed. push-listener migrate replaces it"
        elif each.standing is Standing.NEWER:
            yield (
                f"the database has revision {each.applied_revision} of {each.function.name}, from a newer "
                f"push-listener. This one has revision {each.function.revision}, and leaves it as it is"
            )


def _show_exposures(ways: list[Way]) -> None:
    """Prints who can cause, change or read a push: the intended roles in one line, every other way in its own line."""
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


def show_sql(dsn: str, expire_older_than: timedelta | None) -> None:
    """Prints the missing SQL, and notes what else would be done. If nothing is to be done, an SQL comment says so."""
    missing = [state.migration for state in migrate.status(dsn) if state.applied_at is None]
    changed = [each.function for each in migrate.function_status(dsn) if each.standing is Standing.CHANGED]
    deviations, _ = _deviations(dsn)
    for migration in missing:
        click.echo(f"-- {_title(migration)}\n{migration.up}")
    for function in changed:
        click.echo(function.region())
    for line in deviations:
        note(line)
    if not (missing or changed or deviations):
        click.echo(f"-- {_NOTHING_TO_DO}")
    _note_effects(dsn, expire_older_than)


def _note_effects(dsn: str, expire_older_than: timedelta | None) -> None:
    """Prints, as notes, what the migrations would do to the rows and users of an adopted queue."""
    for line in migrate.foresee(dsn, expire_older_than=expire_older_than):
        note(line)


def roll_back(dsn: str, version: int, *, discard_data: bool, keep_tables: bool) -> None:
    undone = migrate.rollback(
        dsn,
        version,
        discard_data=discard_data,
        keep_tables=keep_tables,
        report=lambda migration: click.echo(f"rolled back {_title(migration)}"),
        warn=note,
    )
    click.echo(f"{len(undone)} migrations rolled back")


def apply(dsn: str, expire_older_than: timedelta | None, *, share_new_columns: bool) -> None:
    repairs: list[str] = []
    replaced: list[Function] = []

    def warn(line: str) -> None:
        if line not in repairs:  # several migrations report the same line
            note(line)
        repairs.append(line)

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
        click.echo(_NOTHING_TO_DO)
    for way in migrate.exposures(dsn):
        if not way.expected:
            note(_closable(way))


def _title(migration: Migration) -> str:
    return f"{migration.version:04d}_{migration.name}"


def _function(function: Function) -> str:
    return f"{function.name} (revision {function.revision})"


def adopt(settings: DatabaseSettings, adoption: served.Adoption) -> None:
    """Expires or keeps the waiting pushes of any database: one that was restored in place does not look like a copy."""
    if adoption == "expire":
        migrate.refuse_while_in_use(settings.listen_dsn)

    async def decide() -> int:
        conn = await psycopg.AsyncConnection.connect(
            with_defaults(settings.listen_dsn), autocommit=True, application_name=migrate.APPLICATION_NAME
        )
        async with conn:
            dsn = settings.database_url.get_secret_value()
            return await served.adopt(conn, dsn, settings.installation, adoption)

    try:
        expired = process.run(decide())
    except served.CannotExpire as refused:
        raise Failed(str(refused)) from None
    if adoption == "expire":
        click.echo(f"{expired:,} waiting pushes have expired")
    else:
        click.echo("the waiting pushes will be sent")
