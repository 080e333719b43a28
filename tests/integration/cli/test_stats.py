"""``push-listener stats``, on a queue with known rows."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import sys
import termios

import orjson

from listener.emulator import Emulator
from tests.support.cli import invoke
from tests.support.postgres import Database
from tests.support.service import PATIENCE, PROJECT, Rows, program, serving, settings_for


async def test_stats(database: Database, emulator: Emulator, rows: Rows) -> None:
    async with serving(settings_for(database.dsn, emulator)):
        for token in ("a", "b", "dead-c"):
            await rows.add(device_token=token, title="t")
        await rows.over()
    await rows.query(
        "insert into push_notifications (device_token, title, next_attempt_at) "
        "values ('t', 't', now() + interval '1 hour'), ('t', 't', 'infinity')"
    )
    done = await invoke(database.dsn, "stats", "--json")
    assert done.exit_code == 0
    told = orjson.loads(done.stdout)
    assert (told["waiting"], told["oldest_due"]) == ({"pending": 2}, 0.0)
    assert (told["sent"], told["dead"]) == (2, 1)
    table = await invoke(database.dsn, "stats")
    assert table.exit_code == 0
    assert "UNREGISTERED" in table.stdout


async def test_of_an_empty_queue_nothing_is_due(database: Database) -> None:
    assert "no push is due" in (await invoke(database.dsn, "stats")).stdout


async def test_stats_of_rows_due_since_minus_infinity(database: Database, rows: Rows) -> None:
    await rows.query(
        "insert into push_notifications (device_token, title, next_attempt_at) values ('t', 't', '-infinity')"
    )
    told = orjson.loads((await invoke(database.dsn, "stats", "--json")).stdout)
    assert 0.0 <= told["oldest_due"] < PATIENCE


def _environment(database: Database) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "DATABASE_URL": database.dsn, "TERM": "xterm"}


async def test_each_reading_is_printed_when_it_is_made_where_there_is_no_terminal(database: Database) -> None:
    """The program would go on for good."""
    async with program("stats", "--watch", "0.1", env=_environment(database), forked=True) as running:
        await running.printed("why pushes were not sent")
    assert "\x1b" not in running.out


async def test_why_pushes_failed_is_seen_in_a_terminal_of_24_lines(database: Database, rows: Rows) -> None:
    for number in range(30):
        await rows.add(
            device_token="t", title="t", status="dead", error_code=f"CODE_{number:02}", next_attempt_at=None
        )
    for status in ("pending", "failed", "processing"):
        await rows.add(device_token="t", title="t", status=status)
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    watching = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "listener", "stats", "--watch", "0.1",
        env=_environment(database), cwd=PROJECT, stdin=child, stdout=child, stderr=child,
    )  # fmt: skip
    os.close(child)
    seen = b""
    try:
        async with asyncio.timeout(PATIENCE):
            while seen.count(b"waiting") < 2:
                seen += await asyncio.to_thread(os.read, parent, 65536)
    finally:
        watching.kill()
        await watching.wait()
        os.close(parent)
    screen = seen.split(b"waiting")[1]
    assert b"CODE_00" in screen
    assert b"mean s until delivered" in screen
    assert b"more codes" in screen
