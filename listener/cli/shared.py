"""What the commands share: failures in plain words, and output."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import click
import orjson

if TYPE_CHECKING:
    from rich.console import Console

    from listener.schema.served import Adoption

ADOPTIONS: tuple[Adoption, ...] = ("expire", "send")
"""The values of ``Adoption``, repeated here because the module of that type imports psycopg, which --help must not."""


class Failed(click.ClickException):
    """The command could not do its work; the message says why."""

    exit_code = 1


class Misconfigured(click.ClickException):
    """The command cannot start with this configuration; the message says what to change."""

    exit_code = 2


def explain(error: Exception) -> click.ClickException:
    """Turns an exception into a message for the user: what went wrong, without a traceback and without a secret."""
    # Imported here because a command that succeeds needs none of these modules.
    import psycopg

    from listener import log
    from listener.config import ConfigError
    from listener.operating.acting import NotAllowed
    from listener.postgres import errors
    from listener.registration import NotMigrated
    from listener.schema.migrate import MigrationError, WrongDatabase

    match error:
        case ConfigError(faults=faults):
            return Misconfigured("\n  ".join(["the configuration cannot be used:", *faults]))
        case WrongDatabase():
            return Misconfigured(str(error))
        case MigrationError() | NotMigrated() | NotAllowed():
            return Failed(str(error))
        case psycopg.errors.UndefinedTable():
            return Failed(str(NotMigrated()))
        case psycopg.Error():  # its own text may quote the address, or a whole row
            return Failed(f"the database: {errors.explain_statement(error)}")
        case _:
            return Failed(
                "unexpected error; its text is withheld because it may quote a secret\n"
                + log.without_text(error)
            )


def age(value: str) -> timedelta:
    """Parses the value of an option, such as 12h, 30d or 8w."""
    from listener import config

    try:
        return config.age(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} {error}") from None


def console() -> Console:
    """Standard output, for tables and progress bars."""
    from rich.console import Console

    return Console(highlight=False)


def note(line: str) -> None:
    """Prints a line that deserves attention to standard error."""
    click.echo(f"note: {line}", err=True)


def print_json(value: object) -> None:
    """Prints a value, dataclasses included, as one line of JSON.

    JSON may contain control characters beyond ASCII and marks that change the direction of text. A terminal obeys
    them, so they are escaped.
    """
    text = orjson.dumps(value).decode()
    click.echo(text if text.isprintable() else "".join(map(_printable, text)))


def _printable(character: str) -> str:
    """A character of a JSON text: as it is if it is printable, else as a JSON escape."""
    if character.isprintable():
        return character
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"
