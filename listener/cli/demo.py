"""``push-listener demo``."""

from __future__ import annotations

import click

from listener import interrupts
from listener.cli.shared import Failed, console


@click.command()
@click.option(
    "--once",
    is_flag=True,
    help="Exit when every push of the demo has ended: with code 0 if each ended as expected, else with 1.",
)
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port of the web server; if it is taken, any free port.",
)
def command(once: bool, port: int) -> None:
    """Show everything at work on this machine.

    The demo starts a private Postgres, a local FCM and the real service, adds rows, and prints what becomes of each.
    It needs no account and no network.
    """
    with interrupts.importing():
        import asyncio

        from listener import process
        from listener.demo.embedded import EmbeddedPostgresError
        from listener.demo.run import DemoFailed, run

    try:
        surprises = process.run(run(console(), once=once, port=port))
    except (KeyboardInterrupt, asyncio.CancelledError):
        if once:
            raise KeyboardInterrupt from None  # no success: nobody has checked the outcome of the rows
        return
    except (DemoFailed, EmbeddedPostgresError) as error:
        raise Failed(str(error)) from None
    if surprises:
        raise Failed("\n  ".join(["not every push ended as expected:", *surprises]))
