"""What this process may do on this machine, where it can listen, and who can read its metrics."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from functools import partial

from listener import process
from listener.config import Settings
from listener.doctor.findings import Finding, Group
from listener.doctor.limits import Limits, within

_GROUP = Group("process")


def examine(settings: Settings, limits: Limits) -> Iterator[Finding]:
    """As ``run`` does, it raises the limit of open files of this process."""
    yield from _addresses(settings, limits)
    yield judge_metrics(settings)
    if settings.metrics_port is not None:
        yield _GROUP.ok("/metrics is open on METRICS_PORT: nobody but your private network should reach that")
    allowed = process.make_room_for_requests(settings)
    yield judge_open_files(settings.max_in_flight, allowed)


def _addresses(settings: Settings, limits: Limits) -> Iterator[Finding]:
    """A fault for each address on which ``run`` cannot listen. A taken port is no fault: ``run`` may be using it."""
    wanted = [("HOST", "PORT", settings.host, settings.port)]
    if settings.metrics_port is not None:
        wanted.append(("METRICS_HOST", "METRICS_PORT", settings.metrics_host, settings.metrics_port))
    for name_of_host, name_of_port, host, port in wanted:
        remedy = f"set {name_of_host} to an address of this machine, or remove it, which means every address"
        try:
            within(limits.resolve, partial(asyncio.run, _bind(host, port)))
        except TimeoutError:
            yield _GROUP.wrong_setting(f"{name_of_host}: no name server says which address that is", remedy)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            if error.errno == errno.EACCES:
                remedy = f"set {name_of_port} to 1024 or more, or let this process use ports below"
            yield _GROUP.wrong_setting(
                f"{name_of_host}, {name_of_port}: cannot listen there: {_reason(error)}", remedy
            )


async def _bind(host: str | None, port: int) -> None:
    """Binds the port for a moment; nobody can connect to it. Raises OSError if that is impossible."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, host, port, start_serving=False)
    server.close()
    await server.wait_closed()


def _reason(error: OSError) -> str:
    """The reason without the address, which asyncio's own text contains."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or type(error).__name__
    return os.strerror(error.errno)


def judge_metrics(settings: Settings) -> Finding:
    """Whether /metrics can be read, and what a reader needs."""
    if settings.metrics_token is not None:
        return _GROUP.ok("/metrics asks for METRICS_TOKEN")
    if settings.metrics_closed and settings.metrics_port is not None:
        return _GROUP.ok("/metrics is closed on PORT")
    if settings.metrics_closed:
        return _GROUP.warning(
            "/metrics is closed: other machines can reach HOST, and there is no METRICS_TOKEN",
            "set METRICS_TOKEN, and let Prometheus send it; or METRICS_PORT, in a private network; or HOST=127.0.0.1, "
            "if Prometheus runs on this machine",
        )
    return _GROUP.ok("/metrics is open, on this machine only")


def judge_open_files(wanted: int, allowed: int) -> Finding:
    """``allowed``: for how many concurrent requests this process may open files; at most ``wanted``."""
    if allowed >= wanted:
        return _GROUP.ok(f"the limit of open files is enough for MAX_IN_FLIGHT={wanted:,}")
    text = f"the limit of open files allows {allowed:,} concurrent requests, and MAX_IN_FLIGHT is {wanted:,}"
    remedy = (
        "raise the hard limit where the process is started (ulimit -Hn, LimitNOFILE=), or lower MAX_IN_FLIGHT"
    )
    if allowed == 0:
        return _GROUP.wrong_setting(f"{text}: push-listener run does not start", remedy)
    return _GROUP.warning(f"{text}: push-listener run lowers it", remedy)
