"""The arguments and options that ``requeue`` and ``cancel`` share. ``bulk`` does the work, and imports psycopg."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from listener.cli import search

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Choice:
    """How the command is to act."""

    dry_run: bool
    yes: bool
    reason: str
    as_json: bool


def options(command: F) -> F:
    """Adds the arguments and options of both commands, except those of the filter (``search.options``)."""
    for add in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON; needs --yes or --dry-run."),
        click.option("--reason", default="", help="Why, for the record (push_listener.actions)."),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Show what would be changed; change nothing."),
        click.option(
            "--until", type=search.MOMENT, help="Only pushes that last changed before this time, or age."
        ),
        click.option(
            "--since", type=search.MOMENT, help="Only pushes that changed since this time, or age (12h)."
        ),
        click.argument("ids", metavar="[ID]...", nargs=-1),
    ):
        command = add(command)
    return command
