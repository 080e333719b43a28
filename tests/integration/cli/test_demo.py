"""``push-listener demo``, as a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from listener.demo import run as demo
from listener.emulator import Emulator
from listener.interrupts import EXIT_CODE
from tests.support.documents import blocks, shape
from tests.support.postgres import Database
from tests.support.service import Program, get, program, run

ENVIRONMENT = {
    "PATH": os.environ.get("PATH", ""),
    "HOME": os.environ.get("HOME", "/"),
    "COLUMNS": "200",
    "PYTHONUNBUFFERED": "1",
}


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory for all that the demo makes; its server, which is not root, can enter it."""
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which another program listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


async def test_once_shows_every_kind_of_outcome_and_exits() -> None:
    code, out, err = await run("demo", "--once", "--port", "0", env=ENVIRONMENT)
    assert (code, err) == (0, "")
    for text in (
        "high priority, to one token",
        "to a user with two devices",
        "scheduled 5 s ahead",
        "UNREGISTERED",
        "TITLE_MISSING",
        "after 2 retries",
    ):
        assert text in out
    (stated,) = [text for _, text in blocks("README.md") if "at FCM" in text]
    lines = shape(out)
    for line in shape(stated):
        # A row may be sent before the demo looks at it: then nobody sees that it was being sent.
        said = line.removesuffix(" ...")
        assert line.endswith("processing") or any(each.startswith(said) for each in lines), line


async def test_without_once_rows_of_ones_own_are_told_apart_until_the_demo_is_interrupted() -> None:
    async with program("demo", "--port", "0", env=ENVIRONMENT) as running:
        await running.printed("send --token")
        (command,) = [line for line in running.out.splitlines() if "send --token" in line]
        for push_id in (await _send(command, running), await _send(command, running)):
            assert re.search(rf"^  {push_id}  sent  at FCM", running.out, re.MULTILINE)
        running.signal(signal.SIGINT)
        assert await running.ended() == 0
    assert "Traceback" not in running.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_leaves_neither_processes_nor_files(number: signal.Signals, temporary: Path) -> None:
    async with program("demo", "--port", "0", env={**ENVIRONMENT, "TMPDIR": str(temporary)}) as running:
        await running.printed("The listener is up")
        started = psutil.Process(running.pid).children(recursive=True)
        assert os.listdir(temporary)
        running.signal(number)
        assert await running.ended() == 0
    assert "Traceback" not in running.output
    assert [each for each in started if each.is_running()] == []
    assert os.listdir(temporary) == []


async def _send(command: str, running: Program) -> str:
    """Runs the command that the demo shows. Returns the id of the push, once the demo has told of it."""
    sending = await asyncio.create_subprocess_shell(
        f"{command} --json", env=ENVIRONMENT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    _, said = await sending.communicate()
    assert sending.returncode == 0
    (push_id,) = re.findall(r"added (\S+)", said.decode())
    await running.printed(push_id)
    return str(push_id)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demo_with_once_exits_with_130(number: signal.Signals) -> None:
    async with program("demo", "--once", "--port", "0", env=ENVIRONMENT) as running:
        await running.printed("The listener is up")
        running.signal(number)
        assert await running.ended() == EXIT_CODE == 130
    assert "Traceback" not in running.output


@pytest.mark.parametrize("looked_free", [False, True])
async def test_a_taken_port(
    database: Database,
    emulator: Emulator,
    taken: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    looked_free: bool,
) -> None:
    """Also if another program takes it when it has been found free, as another demo does."""
    monkeypatch.setattr(demo, "_is_free", lambda port: looked_free)
    async with demo._service(database.dsn, emulator, taken, tmp_path / "log") as web:
        port = int(web.rpartition(":")[2])
        assert port != taken
        assert await get(port, "/readyz") == (200, "ok\n")


async def test_settings_of_another_installation_have_no_effect(
    database: Database, emulator: Emulator, taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICS_PORT", str(taken))
    monkeypatch.setenv("WAKEUP", "sometimes")
    async with demo._service(database.dsn, emulator, 0, tmp_path / "log") as web:
        assert web.startswith("http://127.0.0.1:")
