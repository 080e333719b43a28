"""``push-listener emulator``, as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import aiohttp

from listener.emulator.run import DEFAULT_PORT
from tests.support.documents import blocks, shape
from tests.support.service import PROJECT, program, run

DEFAULT = f"http://127.0.0.1:{DEFAULT_PORT}"
START = "push-listener emulator --credentials key.json\n\n"
BY_HAND = "token=$("


def _block(begin: str) -> str:
    """The block of docs/emulator.md that begins so."""
    (found,) = [text for _, text in blocks("docs/emulator.md") if text.startswith(begin)]
    return found


def _stated(begin: str, endpoint: str, key: Path) -> list[str]:
    said = _block(begin).removeprefix(begin)
    return shape(said.replace(DEFAULT, endpoint).replace("/home/you/key.json", str(key)))


async def _bash(script: str, directory: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        "bash", "-ec", script.replace("curl ", "curl -s "), cwd=directory, env={"PATH": path, "NO_PROXY": "*"},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode()


async def test_emulator(tmp_path: Path) -> None:
    """Also what docs/emulator.md shows: the start, and a push by hand."""
    key = tmp_path / "key.json"
    async with program(
        "emulator", "--port", "0", "--fault", "unavailable,times=1", "--credentials", str(key),
        env={"PATH": os.environ.get("PATH", ""), "PYTHONUNBUFFERED": "1"},
    ) as running:  # fmt: skip
        await running.printed("/emulator/messages")
        endpoint = next(word for word in running.out.split() if word.startswith("http://"))
        assert shape(running.out) == _stated(START, endpoint, key)
        by_hand, answer = _block(BY_HAND).split("\n\n", 1)
        said = await _bash(by_hand.replace(DEFAULT, endpoint), tmp_path)
        # The rule of this test applies first.
        assert '"status": "UNAVAILABLE"' in said
        said = await _bash(by_hand.replace(DEFAULT, endpoint), tmp_path)
        assert shape(said) == shape(answer)
        async with aiohttp.ClientSession() as http, http.get(f"{endpoint}/emulator/faults") as found:
            assert [rule["fault"] for rule in (await found.json())["faults"]] == ["unavailable"]
        assert key.stat().st_mode & 0o777 == 0o600
        running.signal(signal.SIGINT)
        assert await running.ended() == 0
    assert "Traceback" not in running.output


async def test_a_real_key_is_not_overwritten(tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    env = {"PATH": os.environ.get("PATH", ""), "PYTHONUNBUFFERED": "1"}
    real = '{"type": "service_account", "client_email": "firebase-adminsdk-x1y2z@p.iam.gserviceaccount.com"}'
    for content in (real, "no JSON", "[1]"):
        key.write_text(content)
        code, _, err = await run("emulator", "--port", "0", "--credentials", str(key), env=env, forked=True)
        assert code == 2
        assert "exists and is not the key of an emulator: name another file, or remove it" in " ".join(
            err.split()
        )
        assert key.read_text() == content
    key.write_text("")
    for _ in range(2):  # nothing is lost; and then it is its own
        async with program(
            "emulator", "--port", "0", "--credentials", str(key), env=env, forked=True
        ) as running:
            await running.printed("/emulator/messages")


async def test_a_taken_port_is_a_fault_of_the_configuration() -> None:
    env = {"PATH": os.environ.get("PATH", "")}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = await run("emulator", "--port", str(port), env=env, forked=True)
    assert code == 2
    assert err == (
        f"Error: another program, perhaps an emulator, listens on port {port}: "
        "end it, or name another port with --port\n"
    )


async def test_a_key_that_cannot_be_written_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    env = {"PATH": os.environ.get("PATH", "")}
    key = tmp_path / "missing" / "key.json"
    code, _, err = await run("emulator", "--port", "0", "--credentials", str(key), env=env, forked=True)
    assert code == 2
    assert err == f"Error: --credentials: cannot write {key}: No such file or directory\n"


async def test_the_help_tells_the_port() -> None:
    _, out, _ = await run("emulator", "--help", env={"PATH": os.environ.get("PATH", "")}, forked=True)
    assert f"[default: {DEFAULT_PORT};" in " ".join(out.split())


async def test_git_ignores_keys() -> None:
    for name in ("key.json", "my.key.json", "app-firebase-adminsdk-ab1c2-0123456789.json"):
        ignored = await asyncio.create_subprocess_exec("git", "check-ignore", "-q", name, cwd=PROJECT)
        assert await ignored.wait() == 0, name
