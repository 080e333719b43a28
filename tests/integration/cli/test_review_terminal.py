"""The commands of an operator in a real terminal, and in a pipe."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import sys
import termios

from tests.support.cli import invoke
from tests.support.postgres import Database
from tests.support.service import Rows


def _environment(dsn: str, **more: str) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": os.getcwd(), "DATABASE_URL": dsn, **more}


async def _in_a_pipe(dsn: str, command: str) -> tuple[str, str]:
    shell = await asyncio.create_subprocess_shell(
        command.replace("push-listener", f"{sys.executable} -m listener"),
        env=_environment(dsn),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(shell.communicate(), 60)
    return out.decode(), err.decode()


async def _dead(rows: Rows, number: int) -> None:
    await rows.query(
        "insert into push_notifications (device_token, title, status, next_attempt_at, error_code) "
        "select 'phone-' || n, 't', 'dead', null, 'INTERNAL' from generate_series(1, %(number)s) n",
        number=number,
    )


async def test_json_piped_to_head_ends_without_a_report_of_an_error(database: Database, rows: Rows) -> None:
    await _dead(rows, 5000)
    out, err = await _in_a_pipe(database.dsn, "push-listener tail --json --since 1h | head -n 1")
    assert len(out.splitlines()) == 1
    assert err == ""


async def test_statistics_show_anew_in_a_pipe_too(database: Database) -> None:
    """`stats --watch 1 | tee log`: each reading comes when it is made."""
    shell = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "listener", "stats", "--watch", "0.1",
        env=_environment(database.dsn), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert shell.stdout is not None
    try:
        line = await asyncio.wait_for(shell.stdout.readline(), 20)
        assert line
    finally:
        shell.kill()
        await shell.wait()


async def test_why_pushes_failed_is_seen_in_a_terminal_of_24_lines(database: Database, rows: Rows) -> None:
    await _dead(rows, 3)
    for status in ("pending", "failed", "processing"):
        await rows.add(device_token="t", title="t", status=status)
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shell = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "listener", "stats", "--watch", "0.1",
        env=_environment(database.dsn, TERM="xterm"), stdin=child, stdout=child, stderr=child,
    )  # fmt: skip
    os.close(child)
    seen = b""
    try:
        while seen.count(b"waiting") < 3:
            seen += await asyncio.wait_for(asyncio.to_thread(os.read, parent, 65536), 30)
    finally:
        shell.kill()
        await shell.wait()
        os.close(parent)
    assert b"INTERNAL" in seen


async def test_a_preview_shows_whole_ids_and_statuses_in_80_columns(database: Database, rows: Rows) -> None:
    push = await rows.add(
        device_token="t", title="A title", status="dead", error_code="UNREGISTERED", next_attempt_at=None
    )
    done = await invoke(database.dsn, "requeue", "--code", "UNREGISTERED", "--dry-run", COLUMNS="80")
    assert str(push) in done.stdout
    assert "dead" in done.stdout


def test_the_documents_have_the_commands() -> None:
    from pathlib import Path

    root = Path(__file__).parents[3]
    readme = (root / "README.md").read_text()
    assert [name for name in ("tail", "requeue", "cancel") if f"`push-listener {name}" not in readme] == []
    assert (root / "docs/commands.md").is_file()
