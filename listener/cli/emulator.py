"""``push-listener emulator``."""

from __future__ import annotations

import errno
from pathlib import Path

import click

from listener import interrupts
from listener.cli.shared import Misconfigured

_DEFAULT_PORT = 9199  # as in listener.emulator.run, which is slow to import


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind to.")
@click.option(
    "--port",
    default=_DEFAULT_PORT,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0: any free port.",
)
@click.option(
    "--project", default="demo-project", show_default=True, help="Firebase project that it stands in for."
)
@click.option(
    "--latency-ms",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Delay before each answer, in milliseconds.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="RULE",
    help="Fault to answer with, such as unavailable,share=0.1,retry_after=1. Can be given several times.",
)
@click.option(
    "--credentials",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write a service-account key for this emulator to.",
)
def command(
    host: str, port: int, project: str, latency_ms: float, faults: tuple[str, ...], credentials: Path | None
) -> None:
    """Run a local FCM with faults on demand.

    It answers FCM HTTP v1 and OAuth requests as Google's servers do, and keeps what it received for you to read.
    """
    with interrupts.importing():
        from listener import process
        from listener.emulator.run import run

    try:
        process.run(
            run(
                host=host,
                port=port,
                project_id=project,
                latency_ms=latency_ms,
                faults=faults,
                credentials=credentials,
                say=click.echo,
            )
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise Misconfigured(_reason(error, host, port)) from None
    except KeyboardInterrupt:
        pass


def _reason(error: OSError, host: str, port: int) -> str:
    if error.filename is not None:
        return f"--credentials: cannot write {error.filename}: {error.strerror}"
    if error.errno == errno.EADDRINUSE:
        return f"another program, perhaps an emulator, listens on port {port}: end it, or name another port with --port"
    return f"cannot listen on port {port} of {host}: {error.strerror}"
