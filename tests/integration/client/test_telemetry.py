"""Telemetry over both ways in: nothing twice, nothing lost unseen, in threads, tasks, forks and at exit."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from listener.client import AsyncTelemetryService, TelemetryService
from tests.support import rest
from tests.support.client import Way
from tests.support.postgres import Database
from tests.support.service import PATIENCE, python, until

QUICK: dict[str, Any] = {"first_pause": 0.01, "longest_pause": 0.05, "flush_interval": 0.05}
ANN = UUID("a0000000-0000-4000-8000-00000000000a")


def stored(database: Database) -> list[str]:
    """The messages that are stored, with those that are stored twice."""
    with psycopg.connect(database.dsn) as connection:
        return [text for (text,) in connection.execute("select message from telemetry_logs order by id")]


async def test_what_is_logged_is_stored(entry: Way) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
    service = TelemetryService(entry.service())
    assert service.batch_log("start", "cold", metadata={"ms": 412, "at": at}, timestamp=at, user_id=ANN)
    assert service.batch_log("tap")
    assert await asyncio.to_thread(service.flush, PATIENCE)
    counts = await asyncio.to_thread(service.close, PATIENCE)
    assert (counts.accepted, counts.rejected, counts.dropped, counts.pending) == (2, 0, 0, 0)
    with psycopg.connect(entry.database.dsn) as connection:
        rows = connection.execute(
            'select type, message, meta, "timestamp", user_id, batch_id is not null from telemetry_logs order by id'
        ).fetchall()
    assert rows[0] == ("start", "cold", {"ms": 412, "at": str(at)}, at, ANN, True)
    assert rows[1][:3] == ("tap", "", None)


async def test_each_row_once_though_the_database_is_away_and_answers_are_lost(entry: Way) -> None:
    service = TelemetryService(entry.service(), **QUICK)
    entry.faults.go_away()
    for number in range(300):
        service.batch_log("load", str(number))
    await until(lambda: entry.faults.attempts() >= 3)
    assert service.counts().accepted == 0
    entry.faults.lose_answers(4)
    entry.faults.come_back()
    for number in range(300, 600):
        service.batch_log("load", str(number))
    assert await asyncio.to_thread(service.flush, PATIENCE)
    entry.faults.go_away()
    counts = await asyncio.to_thread(service.close, PATIENCE)
    assert (counts.accepted, counts.rejected, counts.dropped, counts.pending) == (600, 0, 0, 0)
    assert stored(entry.database) == [str(number) for number in range(600)]


async def test_an_outage_is_one_line_in_the_log(entry: Way, caplog: pytest.LogCaptureFixture) -> None:
    service = TelemetryService(entry.service(), **QUICK)
    service.batch_log("load", "0")
    assert await asyncio.to_thread(service.flush, PATIENCE)
    entry.faults.go_away()
    service.batch_log("load", "1")
    await until(lambda: entry.faults.attempts() >= 3)
    entry.faults.come_back()
    assert await asyncio.to_thread(service.flush, PATIENCE)
    counts = await asyncio.to_thread(service.close, PATIENCE)
    assert (counts.accepted, counts.pending) == (2, 0)
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.name for record in warnings] == ["listener.client.telemetry_shipper"]


async def test_a_full_buffer_counts_what_it_drops(entry: Way) -> None:
    service = TelemetryService(entry.service(), max_buffer=100, **QUICK)
    entry.faults.go_away()
    for number in range(1000):
        assert service.batch_log("load", str(number))
    await until(lambda: entry.faults.attempts() >= 1)
    entry.faults.come_back()
    counts = await asyncio.to_thread(service.close, PATIENCE)
    found = stored(entry.database)
    assert counts.pending == 0
    assert len(found) == len(set(found)) == counts.accepted
    assert counts.dropped == 1000 - len(found)
    assert counts.dropped >= 1000 - 200
    # The newest are kept.
    assert set(found) >= {str(number) for number in range(900, 1000)}


async def test_what_the_database_refuses_is_counted_and_told(entry: Way) -> None:
    told: list[tuple[str, str]] = []
    service = TelemetryService(
        entry.service(), on_reject=lambda record, reason: told.append((record["message"], reason)), **QUICK
    )
    for number in range(10):
        service.batch_log("load", str(number), user_id="no id" if number == 4 else None)
    counts = await asyncio.to_thread(service.close, PATIENCE)
    assert (counts.accepted, counts.rejected) == (9, 1)
    assert told == [("4", "user_id must be a UUID")]


async def test_what_postgres_cannot_store_is_replaced(entry: Way) -> None:
    service = TelemetryService(entry.service())
    service.batch_log("odd", "a\x00b\ud800c\\u0000", metadata={"k\x00": ["\udfff", float("nan") and 1, b"x"]})
    counts = await asyncio.to_thread(service.close, PATIENCE)
    assert (counts.accepted, counts.rejected) == (1, 0)
    assert stored(entry.database) == ["a\ufffdb?c\\u0000"]


async def test_a_users_records_are_the_users(entry: Way) -> None:
    async with AsyncTelemetryService(entry.user(ANN)) as service:
        service.batch_log("tap", "mine")
        assert await service.flush(PATIENCE)
        assert service.counts().accepted == 1
    with psycopg.connect(entry.database.dsn) as connection:
        assert connection.execute("select user_id from telemetry_logs").fetchone() == (ANN,)


async def test_the_service_for_a_loop_does_the_same(entry: Way) -> None:
    transport = entry.service()
    service = AsyncTelemetryService(transport, **QUICK)
    entry.faults.go_away()
    for number in range(300):
        service.batch_log("load", str(number))
    await until(lambda: entry.faults.attempts() >= 2)
    entry.faults.lose_answers(2)
    entry.faults.come_back()
    assert await service.flush(PATIENCE)
    counts = await service.close(PATIENCE)
    await transport.close()
    assert (counts.accepted, counts.pending) == (300, 0)
    assert stored(entry.database) == [str(number) for number in range(300)]


async def test_closing_without_a_database_ends_and_tells_what_is_left(entry: Way) -> None:
    service = TelemetryService(entry.service(), **QUICK)
    entry.faults.go_away()
    for number in range(250):
        service.batch_log("load", str(number))
    counts = await asyncio.to_thread(service.close, 0.2)
    assert (counts.accepted, counts.dropped, counts.pending) == (0, 0, 250)
    assert service.batch_log("late") is False
    assert service.counts().dropped == 1


# --- processes -----------------------------------------------------------------------------------------

_BEGIN = """
import os, sys, signal, threading
from listener.client import Direct, Rest, TelemetryService
way, address, key = sys.argv[1:4]
service = TelemetryService(Direct(address) if way == "direct" else Rest(address, key))
"""

FORKS = """
for number in range(10):
    service.batch_log("parent", f"parent {number}")
if len(sys.argv) > 4:
    service.flush()  # the thread and its connections exist
child = os.fork()
name = "parent" if child else "child"
for number in range(5):
    service.batch_log(name, f"{name} after {number}")
if child:
    assert os.waitpid(child, 0)[1] == 0
"""

POOL = """
import multiprocessing
def work(number):
    service.batch_log("child", f"child {number}")
if __name__ == "__main__":
    service.batch_log("parent", "parent")
    service.flush()
    workers = [multiprocessing.get_context("fork").Process(target=work, args=(n,)) for n in range(4)]
    for each in workers: each.start()
    for each in workers: each.join()
"""

ENDS_AT_ONCE = """
import atexit
@atexit.register
def last_words():
    service.batch_log("last", "last words")
for number in range(3):
    service.batch_log("last", f"last {number}")
"""

WAITS = """
for number in range(300):
    service.batch_log("load", str(number))
print("logged", flush=True)
threading.Event().wait()
"""


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": os.pathsep.join(sys.path)}


def _arguments(entry: Way, server: rest.RestServer | None, *more: str) -> list[str]:
    if server is None:
        return ["direct", entry.database.dsn, "", *more]
    return ["rest", server.url.replace("127.0.0.1", "localhost"), rest.SECRET_KEY, *more]


async def _run(entry: Way, code: str, *more: str, forked: bool = True) -> None:
    """Runs a program over this way; it has to end by itself, and quietly."""
    server = getattr(entry.faults, "server", None)
    arguments = _arguments(entry, server, *more)
    async with python("-c", _BEGIN + code, *arguments, env=_environment(), forked=forked) as running:
        assert await running.ended() == 0, running.output
        assert running.output == ""


@pytest.mark.parametrize("warm", [(), ("warm",)], ids=["cold", "warm"])
async def test_after_a_fork_both_processes_send_their_own(entry: Way, warm: tuple[str, ...]) -> None:
    await _run(entry, FORKS, *warm)
    assert sorted(stored(entry.database)) == sorted(
        [f"parent {n}" for n in range(10)]
        + [f"parent after {n}" for n in range(5)]
        + [f"child after {n}" for n in range(5)]
    )


async def test_workers_of_multiprocessing_send_before_they_end(entry: Way) -> None:
    await _run(entry, POOL)
    assert sorted(stored(entry.database)) == [f"child {n}" for n in range(4)] + ["parent"]


async def test_what_waits_and_what_is_logged_while_the_interpreter_ends_is_sent(entry: Way) -> None:
    await _run(entry, ENDS_AT_ONCE, forked=False)
    assert stored(entry.database) == ["last 0", "last 1", "last 2", "last words"]


async def test_ctrl_c_ends_a_process_whose_database_is_away(tmp_path: Path) -> None:
    script = _BEGIN + WAITS
    arguments = ["rest", "http://127.0.0.1:1", rest.SECRET_KEY]
    async with python("-c", script, *arguments, env=_environment(), forked=True) as running:
        await running.printed("logged")
        running.signal(signal.SIGINT)
        assert await running.ended() == -signal.SIGINT
        assert "KeyboardInterrupt" in running.err


async def test_ctrl_c_sends_what_waits(entry: Way) -> None:
    script = _BEGIN + WAITS
    server = getattr(entry.faults, "server", None)
    async with python("-c", script, *_arguments(entry, server), env=_environment(), forked=True) as running:
        await running.printed("logged")
        running.signal(signal.SIGINT)
        assert await running.ended() == -signal.SIGINT
    assert sorted(stored(entry.database)) == sorted(map(str, range(300)))
