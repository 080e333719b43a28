"""``push-listener healthcheck``. A platform runs it every few seconds, so it imports next to nothing."""

from __future__ import annotations

import http.client
import math
import os
import queue
import re
import threading

import click

_DEFAULT_PORT = "8080"  # as in listener.config, which is slow to import
_EVERY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # nothing binds to it here
_LONGEST_ANSWER = 65536
_INTEGER = re.compile(r"\+?([0-9]+(?:_[0-9]+)*)(?:\.0+)?")
"""The texts that the settings, which pydantic reads, accept as a whole number of at least 0."""


class _Seconds(click.FloatRange):
    """A number of seconds. It refuses ``nan``, which click finds in every range and no socket accepts."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


@click.command()
@click.option("--ready", is_flag=True, help="Ask whether it can work (/readyz), not only whether it lives.")
@click.option(
    "--timeout",
    default=3.0,
    show_default=True,
    type=_Seconds(min=0, max=3600, min_open=True),
    help="Seconds to wait for the answer.",
)
def command(ready: bool, timeout: float) -> None:
    """Ask the service on this machine whether it is well.

    It asks the web server at HOST and PORT. The exit code is 0 if the answer is 200, and otherwise 1.
    """
    host, port = _address()
    path = "/readyz" if ready else "/healthz"
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"
    answers: queue.SimpleQueue[tuple[int, str] | Exception] = queue.SimpleQueue()
    # A thread limits the whole request: a socket's timeout holds for each step, and no timeout limits the lookup of a
    # name. The thread ends with the process.
    threading.Thread(target=lambda: answers.put(_ask(host, port, path, timeout)), daemon=True).start()
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        answer = TimeoutError()
    if isinstance(answer, Exception):
        raise click.ClickException(f"{where} does not answer: {_reason(answer)}")
    status, said = answer
    if status != http.client.OK:
        raise click.ClickException(f"{where} answers {status}: {said}")
    click.echo(f"{where} answers {status}: {said}")


def _ask(host: str, port: int, path: str, timeout: float) -> tuple[int, str] | Exception:
    """The status and the text of the answer, or why there is none."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)  # unlike urllib, it uses no proxy
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read(_LONGEST_ANSWER).decode(errors="replace")
        return answer.status, "; ".join(text.split("\n")).strip("; ")
    except Exception as error:
        return error
    finally:
        connection.close()


def _address() -> tuple[str, int]:
    """Where the service with this environment listens. Raises ClickException if HOST or PORT cannot be used."""
    host = _setting("HOST")
    try:
        host.encode("idna")  # as the socket does
        is_name = not re.search(r"[\x00-\x20/@\[\]\x7f]", host)
    except UnicodeError:
        is_name = False
    if not is_name:
        raise click.ClickException(
            "HOST does not say where the service listens: it is no address and no name"
        )
    number = _INTEGER.fullmatch(_setting("PORT") or _DEFAULT_PORT)
    if number is None or len(number[1]) > 20 or not 0 < int(number[1]) < 65536:
        raise click.ClickException(
            "PORT does not say where the service listens: set it to a number from 1 to 65535"
        )
    return _EVERY_ADDRESS.get(host, host), int(number[1])


def _setting(name: str) -> str:
    """Reads a variable as the settings do: its name in upper or lower case, its value without surrounding blanks and
    line ends, and without the quotes that Docker's --env-file leaves in place.
    """
    found = {each.upper(): text for each, text in os.environ.items() if each.upper() == name}
    value = found.get(name, "").strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1].strip()
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or type(error).__name__
