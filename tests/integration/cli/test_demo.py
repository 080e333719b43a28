"""``push-listener demo``, as a process of its own. One test tries its start, too; the others fork it."""

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
from tests.support.documents import blocks, shape
from tests.support.postgres import Database
from tests.support.service import Program, get, program

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
    async with program("demo", "--once", "--port", "0", env=ENVIRONMENT) as running:
        code = await running.ended(patience=90.0)
    assert (code, running.err) == (0, "")
    for text in (
        "high priority, to one token",
        "to a user with two devices",
        "scheduled 5 s ahead",
        "UNREGISTERED",
        "TITLE_MISSING",
        "after 2 retries",
    ):
        assert text in running.out
    (stated,) = [text for _, text in blocks("README.md") if "at FCM" in text]
    lines = shape(running.out)
    for line in shape(stated):
        # A row may be sent before the demo looks at it: then nobody sees that it was being sent.
        said = line.removesuffix(" ...")
        assert line.endswith("processing") or any(each.startswith(said) for each in lines), line


async def test_without_once_rows_of_ones_own_are_told_apart_until_the_demo_is_interrupted(
    temporary: Path,
) -> None:
    env = {**ENVIRONMENT, "TMPDIR": str(temporary)}
    async with program("demo", "--port", "0", env=env, forked=True) as running:
        await running.printed("The listener is up")
        await running.printed("after 2 retries")
        await running.printed("send --token")
        (command,) = [line for line in running.out.splitlines() if "send --token" in line]
        for push_id in await asyncio.gather(_send(command, running), _send(command, running)):
            assert re.search(rf"^  {push_id}  sent  at FCM", running.out, re.MULTILINE)
        await _ends(running, signal.SIGINT, temporary, code=0)


async def test_a_signal_in_the_middle_leaves_neither_processes_nor_files(temporary: Path) -> None:
    """With --once the outcome is unknown then, so this is no success."""
    env = {**ENVIRONMENT, "TMPDIR": str(temporary)}
    async with program("demo", "--once", "--port", "0", env=env, forked=True) as running:
        await running.printed("The listener is up")
        await _ends(running, signal.SIGTERM, temporary, code=130)


async def _ends(running: Program, number: signal.Signals, temporary: Path, code: int) -> None:
    """Sends a signal to the demo, and checks what is left of it."""
    started = psutil.Process(running.pid).children(recursive=True)
    assert started
    assert os.listdir(temporary)
    running.signal(number)
    assert await running.ended() == code
    assert "Traceback" not in running.output
    assert [each for each in started if each.is_running()] == []
    assert os.listdir(temporary) == []


async def _send(command: str, running: Program) -> str:
    """Runs the command that the demo shows, but waits longer. Returns the push's id, once the demo has told of it."""
    assert "--wait 5" in command
    sending = await asyncio.create_subprocess_shell(
        f"{command.replace('--wait 5', '--wait 60')} --json",
        env=ENVIRONMENT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await sending.communicate()
    assert sending.returncode == 0
    (push_id,) = re.findall(r"added (\S+)", said.decode())
    await running.printed(push_id)
    return str(push_id)


async def test_a_port_that_is_taken_at_the_last_moment_and_settings_of_another_installation_have_no_effect(
    database: Database, emulator: Emulator, taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program, such as another demo, takes the port after it has been found free."""
    assert not demo._is_free(taken)
    monkeypatch.setattr(demo, "_is_free", lambda port: True)
    monkeypatch.setenv("METRICS_PORT", str(taken))
    monkeypatch.setenv("WAKEUP", "sometimes")
    async with demo._service(database.dsn, emulator, taken, tmp_path / "log") as web:
        assert web.startswith("http://127.0.0.1:")
        port = int(web.rpartition(":")[2])
        assert port != taken
        assert await get(port, "/readyz") == (200, "ok\n")
