"""The group of all commands. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 ended by Ctrl-C."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from listener import __version__, interrupts

SUMMARIES = {
    "run": "Run the service until SIGTERM or SIGINT.",
    "migrate": "Create the tables, or adopt existing ones.",
    "doctor": "Check the installation and say what to do.",
    "send": "Add one push to the queue.",
    "stats": "Show the queue and recent results.",
    "tail": "Follow pushes as they end.",
    "requeue": "Put pushes back in the queue, with all tries again.",
    "cancel": "Cancel pushes that wait in the queue.",
    "purge": "Delete pushes that finished long ago.",
    "healthcheck": "Ask the service on this machine whether it is well.",
    "emulator": "Run a local FCM with faults on demand.",
    "demo": "Show everything at work on this machine.",
}
"""Every command and what ``push-listener --help`` says of it: the first sentence of the command's own help."""


class Commands(click.Group):
    """Imports a command's module only when the command is called, so that no command waits for another one's imports.

    The command ``x`` is ``listener.cli.x.command``.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUMMARIES:
            return None
        command: click.Command = import_module(f"listener.cli.{cmd_name}").command
        interrupts.raise_again()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Reports every failure in plain words instead of a traceback."""
        try:
            return self._invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(interrupts.EXIT_CODE) from None

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # the reader of a pipe, such as head, has ended; click ends quietly
            raise
        except Exception as error:
            from listener.cli.shared import explain

            raise explain(error) from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 140})
@click.version_option(__version__, prog_name="push-listener")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Sends the rows of push_notifications as push notifications, through Firebase Cloud Messaging (FCM)."""
    if ctx.invoked_subcommand == "healthcheck":  # it uses no driver, and must start quickly
        return
    from listener import log

    log.silence_drivers()
