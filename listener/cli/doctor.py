"""``push-listener doctor``."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import click
from rich.markup import escape

from listener import interrupts
from listener.cli.shared import console, print_json
from listener.doctor.findings import Finding, Level

_SIGNS = {
    Level.OK: "[green]✓[/]",
    Level.WARNING: "[yellow]![/]",
    Level.FAULT: "[red]✗[/]",
    Level.SKIPPED: "[dim]-[/]",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print every finding as JSON.")
@click.option(
    "--device",
    metavar="TOKEN",
    help="Let FCM validate a message to this registration token or Firebase installation id, not only one to a topic. "
    "That of an iPhone also shows whether Apple accepts the APNs key. Nothing is delivered.",
)
def command(as_json: bool, device: str | None) -> None:
    """Check the installation and say what to do.

    It checks the settings, the database with all that push-listener needs there, FCM, this machine, and who can cause,
    change or read a push. It changes nothing and sends nothing. The owner of the tables sees most. It ends within 20
    seconds if the database or FCM does not answer.

    The exit code is 2 if a setting is wrong, so that push-listener run would not start; 1 if anything else is wrong.
    """
    if device is not None and not device.strip():
        raise click.UsageError("--device needs a registration token or an installation id")
    with interrupts.importing():
        from listener import log
        from listener.doctor import examination

    with log.silence():  # the findings already say what the parts of the service would log
        found = _show(examination.examine(device), as_json=as_json)
    if any(finding.is_setting for finding in found):
        raise SystemExit(2)
    if any(finding.level is Level.FAULT for finding in found):
        raise SystemExit(1)


def _show(findings: Iterable[Finding], *, as_json: bool) -> list[Finding]:
    """Prints them, and returns them."""
    if as_json:
        found = list(findings)
        print_json(found)
        return found
    found = []
    _print(_noted(findings, found))
    return found


def _noted(findings: Iterable[Finding], found: list[Finding]) -> Iterable[Finding]:
    for finding in findings:
        found.append(finding)
        yield finding


def _print(findings: Iterable[Finding]) -> None:
    """Prints each group as soon as it is known. Neighbouring findings with the same remedy print it once.

    Long lines are not wrapped, because people copy SQL from them.
    """
    out = console()
    for _, together in groupby(findings, key=_heading):
        in_group = list(together)
        groups = dict.fromkeys(finding.group for finding in in_group)
        out.print(f"[bold]{escape(', '.join(groups))}[/]", soft_wrap=True)
        for remedy, alike in groupby(
            in_group if len(groups) == 1 else in_group[:1], lambda finding: finding.remedy
        ):
            for finding in alike:
                out.print(f"  {_SIGNS[finding.level]} {escape(finding.text)}", soft_wrap=True)
            if remedy:
                out.print(f"    try this: {escape(remedy)}", soft_wrap=True)


def _heading(finding: Finding) -> str:
    """The heading above neighbouring findings: their group, or the reason why several groups could not be checked."""
    return finding.text if finding.is_of_whole_group else finding.group
