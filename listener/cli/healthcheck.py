"""``push-listener healthcheck``. A platform runs it every few seconds, so it imports next to nothing."""

from __future__ import annotations

import http.client
import os

import click

_DEFAULT_PORT = "8080"  # as in listener.config, which is slow to import
_EVERY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # nothing binds to it here
_LONGEST_ANSWER = 65536


@click.command()
@click.option("--ready", is_flag=True, help="Ask whether it can work (/readyz), not only whether it lives.")
@click.option(
    "--timeout",
    default=3.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait for the answer.",
)
def command(ready: bool, timeout: float) -> None:
    """Ask the service on this machine whether it is well.

    It asks the web server at HOST and PORT. The exit code is 0 if the answer is 200, and otherwise 1.
    """
    host, port = _address()
    path = "/readyz" if ready else "/healthz"
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"
    connection = http.client.HTTPConnection(host, port, timeout=timeout)  # unlike urllib, it heeds no proxy
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        said = "; ".join(answer.read(_LONGEST_ANSWER).decode(errors="replace").split("\n")).strip("; ")
    except (OSError, http.client.HTTPException) as error:
        raise click.ClickException(f"{where} does not answer: {_reason(error)}") from None
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise click.ClickException(f"{where} answers {answer.status}: {said}")
    click.echo(f"{where} answers {answer.status}: {said}")


def _address() -> tuple[str, int]:
    """Where the service of this environment listens. Raises ClickException if that cannot be told."""
    host = _setting("HOST")
    port = _setting("PORT") or _DEFAULT_PORT
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.ClickException(
            "PORT does not say where the service listens: set it to a number from 1 to 65535"
        )
    return _EVERY_ADDRESS.get(host, host), int(port)


def _setting(name: str) -> str:
    """A variable, without the quotes that Docker's --env-file leaves in place."""
    value = os.environ.get(name, "").strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1].strip()
    return value


def _reason(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or type(error).__name__
