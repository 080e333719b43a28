"""``push-listener doctor``."""

from __future__ import annotations

from itertools import groupby

import click
from rich.markup import escape

from listener import config
from listener.cli.shared import console, print_json
from listener.schema import doctor
from listener.schema.doctor import Finding, Level

_SIGNS = {Level.GOOD: "[green]✓[/]", Level.LOOK: "[yellow]![/]", Level.WRONG: "[red]✗[/]"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print every finding as JSON.")
def command(as_json: bool) -> None:
    """Check the installation and say what to do.

    It checks the connections, migrations, privileges and locks, and who can cause, change or read a push. It changes
    nothing. It uses DATABASE_URL and LISTEN_DATABASE_URL; the owner of the tables sees most. The exit code is 1 if
    something is wrong.
    """
    findings = list(doctor.examine(config.load_database()))
    if as_json:
        print_json(findings)
    else:
        _print(findings)
    if any(finding.level is Level.WRONG for finding in findings):
        raise SystemExit(1)


def _print(findings: list[Finding]) -> None:
    """Prints a remedy once for all neighbouring findings that it is for. Long lines are not wrapped: people copy SQL
    from them."""
    out = console()
    for group, in_group in groupby(findings, key=lambda finding: finding.group):
        out.print(f"[bold]{escape(group)}[/]")
        for remedy, alike in groupby(in_group, key=lambda finding: finding.remedy):
            for finding in alike:
                out.print(f"  {_SIGNS[finding.level]} {escape(finding.text)}", soft_wrap=True)
            if remedy:
                out.print(f"    try this: {escape(remedy)}", soft_wrap=True)
