"""The log of ``push-listener run``: what reads it, or does not, never stops the process."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from listener.emulator import Emulator
from tests.support.postgres import Database
from tests.support.servers import closed_port
from tests.support.service import PATIENCE, PROJECT, Rows, environment, get, program, python

_CLOSED = 'exec "$0" -m listener run <&- >&- 2>&-'


@asynccontextmanager
async def running(
    *arguments: str, env: dict[str, str], stderr: int = asyncio.subprocess.DEVNULL
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *arguments, cwd=PROJECT, env=env, stdin=asyncio.subprocess.DEVNULL, stderr=stderr
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ready(port: int) -> None:
    """Returns once the service answers that it is ready."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(aiohttp.ClientError):
                if (await get(port, "/readyz"))[0] == 200:
                    return
            await asyncio.sleep(0.02)


async def ended(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(PATIENCE):
        return await process.wait()


async def test_standard_error_that_nobody_reads(database: Database, rows: Rows, emulator: Emulator) -> None:
    """The pipe is full from the start, so that the first line would block. When it is read, what was dropped is told.

    What waits is limited to so few bytes here that lines are dropped.
    """
    small = "from listener import log_output as o; o.LogOutput.__init__.__kwdefaults__['limit'] = 600\n"
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * 4096)
    port = closed_port()
    code = small + "from listener.cli.main import main; main(['run'])"
    env = environment(database.dsn, emulator, port=str(port), token_loss_breaker="false")
    async with running(sys.executable, "-c", code, env=env, stderr=writer) as process:
        await ready(port)
        await rows.add_many(30, "dead")
        await rows.until(lambda found: all(row["status"] == "dead" for row in found.values()))
        dropped = await lines_dropped(port)
        assert dropped > 0

        def read() -> str:
            told = b""
            while b"log lines dropped" not in told:
                told += os.read(reader, 65536)
            return told.decode()

        (told, *_) = re.findall(r'"lines": (\d+)', await asyncio.to_thread(read))
        assert dropped <= int(told) <= await lines_dropped(port)  # it may have written of a push in between
        fill(writer)
        os.close(writer)
        await rows.add_many(100, "dead")
        await rows.until(lambda found: all(row["status"] == "dead" for row in found.values()))
        process.terminate()
        assert await ended(process) == 0  # although nobody reads its last lines
    os.close(reader)


async def lines_dropped(port: int) -> int:
    """What the metric of the service says."""
    _, text = await get(port, "/metrics")
    (value,) = re.findall(r"^push_log_lines_dropped_total (\S+)$", text, re.MULTILINE)
    return int(float(value))


def fill(pipe: int) -> None:
    """Writes until there is no room, through a description of its own: that of the process goes on blocking."""
    own = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(own, b"x")
    os.close(own)


async def test_pushes_that_die_alike_are_summed_up(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    env = environment(database.dsn, emulator, token_loss_breaker="false")
    async with program("run", env=env, forked=True) as running:
        await running.said("ready")
        await rows.add_many(330, "dead")
        await rows.until(lambda found: all(row["status"] == "dead" for row in found.values()))
        running.terminate()
        assert await running.ended() == 0
        dead = [record for record in running.records if record["event"] == "push dead"]
        assert len(dead) < 20
        assert sum(record.get("left_out", 1) for record in dead) == 330
        assert {record["code"] for record in dead} == {"UNREGISTERED"}
        assert running.records[-1] == dead[-1]  # told at the end, although the window has not ended


async def test_without_standard_streams_it_works(database: Database, rows: Rows, emulator: Emulator) -> None:
    port = closed_port()
    env = environment(database.dsn, emulator, port=str(port))
    async with running("sh", "-c", _CLOSED, sys.executable, env=env) as process:
        await ready(port)
        sent = await rows.add(device_token="phone", title="t")
        assert (await rows.one_over(sent))["status"] == "sent"
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0


_FDS = """
import os, subprocess, sys
code = "import os; from listener.__main__ import _open_standard_streams as o; o(); " \\
       "import sys; print('out', flush=True); print('err', file=sys.stderr); [os.fstat(n) for n in range(3)]"
closed = [n for n in range(3) if n in {closed}]
def close():
    for n in closed: os.close(n)
done = subprocess.run([sys.executable, "-c", code], preexec_fn=close)
sys.exit(done.returncode)
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
async def test_closed_streams_are_opened_under_their_own_numbers(closed: tuple[int, ...]) -> None:
    code = _FDS.replace("{closed}", repr(closed))
    async with python("-c", code, env={"PATH": os.environ["PATH"]}) as started:
        assert await started.ended() == 0
    assert ("out\n" in started.out) == (1 not in closed)
    assert ("err\n" in started.err) == (2 not in closed)


async def test_the_last_lines_before_an_exit_appear_in_order(
    blank_database: Database, emulator: Emulator
) -> None:
    async with program("run", env=environment(blank_database.dsn, emulator), forked=True) as running:
        assert await running.ended() == 1
    lines = running.err.splitlines()
    assert lines[-1].startswith(
        "Error: the database has not been migrated to this version: run push-listener migrate"
    )
    assert "Traceback" not in running.output
    assert any("web server listening" in line for line in lines[:-1])
