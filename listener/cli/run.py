"""``push-listener run``: options and help. ``serve`` does the work, so that --help does not import the service."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import click

from listener import interrupts
from listener.cli.shared import ADOPTIONS

if TYPE_CHECKING:
    from listener.config import Variable
    from listener.schema.served import Adoption


class _Run(click.Command):
    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists every environment variable."""
        with interrupts.importing():
            from listener import config

        formatter.write_paragraph()
        formatter.write_text("Environment variables, with defaults in brackets and times in seconds:")
        for group, variables in groupby(config.describe(), key=lambda variable: variable.group):
            with formatter.section(group):
                formatter.write_dl([(variable.name, _meaning(variable)) for variable in variables])


def _meaning(variable: Variable) -> str:
    return variable.meaning + (f" [{variable.default}]" if variable.default else "")


@click.command(cls=_Run)
@click.option(
    "--adopt-copy",
    "adoption",
    type=click.Choice(ADOPTIONS),
    help="If the database is a copy of one that was served before, or has a new address: let the pushes that wait in "
    "it expire, or send them.",
)
def command(adoption: Adoption | None) -> None:
    """Run the service until SIGTERM or SIGINT.

    Environment variables are its whole configuration. If any of them is wrong, every fault is reported at once and
    the exit code is 2.
    """
    with interrupts.importing():
        from listener.cli.serve import serve

    serve(adoption)
