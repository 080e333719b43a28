"""``push-listener demo``: everything at work, with nothing but Python.

The demo starts a private Postgres, the FCM emulator, and the real service as a process of its own. It adds a few rows,
prints each change of their status as it happens, and checks how each row ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import orjson
import psycopg
from psycopg.rows import namedtuple_row
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from listener import client, config
from listener.demo.embedded import EmbeddedPostgres
from listener.emulator import Emulator
from listener.schema import migrate

_USER = UUID("00000000-0000-4000-8000-000000000001")
_FINAL = ("sent", "delivered", "dead", "expired", "cancelled")
_TIMEOUT_S = 60.0
_POLL_INTERVAL_S = 0.05
_WRONG_SETTINGS = 2
"""The exit code of ``push-listener run`` for a wrong setting, and also for a port that is taken."""
_WEB_PORT = re.compile(r"web server listening .*\bport=(\d+)")


class DemoFailed(Exception):
    """A part of the demo did not start; the message says which and why."""


@dataclass(slots=True)
class _Row:
    """One row of the demo, and how it should end."""

    what: str
    values: dict[str, Any]
    final_status: str
    error_code: str | None = None
    retries: int = 0
    requests: int = 1
    """Requests to FCM, and rows in push_delivery_logs."""
    delay: float = 0.0
    send_at: datetime | None = None
    seen: list[tuple[str, int]] = field(default_factory=list)
    """Each (status, retry_count) that was seen, in order."""


def _rows() -> list[_Row]:
    text = {"title": "Your ride is here", "body": "Blue estate car, two minutes away"}
    return [
        _Row("high priority, to one token", {"device_token": "phone-1", "priority": "high", **text}, "sent"),
        _Row("to a user with two devices", {"user_id": _USER, **text}, "sent", requests=2),
        _Row("to a topic", {"topic": "news", "title": "Good morning"}, "sent"),
        _Row("scheduled 5 s ahead", {"device_token": "phone-2", **text}, "sent", delay=5.0),
        _Row("to a dead token", {"device_token": "dead-phone", **text}, "dead", error_code="UNREGISTERED"),
        _Row("503 twice, then accepted", {"device_token": "phone-3", **text}, "sent", retries=2, requests=3),
        _Row(
            "without a title",
            {"device_token": "phone-4", "body": "Hello?"},
            "dead",
            error_code="TITLE_MISSING",
            requests=0,
        ),
    ]


async def run(console: Console, *, once: bool, port: int) -> list[str]:
    """Runs the demo; returns what did not go as expected, one line each.

    Without ``once``, and if all went as expected, the demo runs until it is cancelled. SIGTERM cancels it, and so does
    SIGHUP, which comes when the terminal is closed. Raises DemoFailed or EmbeddedPostgresError.
    """
    _cancel_by_signals()
    async with AsyncExitStack() as stack:
        console.print("Starting a private Postgres ...")
        postgres = stack.enter_context(EmbeddedPostgres())
        done = await asyncio.to_thread(migrate.apply, postgres.uri)
        console.print(f"{len(done)} migrations applied.")
        emulator = await stack.enter_async_context(Emulator(faults=["unavailable,token=phone-3,times=2"]))
        log = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="push-listener-"))) / "listener.log"
        web = await stack.enter_async_context(_service(postgres.uri, emulator, port, log))
        console.print(f"The listener is up. Its page, for your browser: [bold]{web}/[/]")
        console.print("Rows are inserted into push_notifications; this becomes of them:\n")

        conn = stack.enter_context(psycopg.connect(postgres.uri, autocommit=True))
        _register_devices(conn)
        start = client.database_time(conn)
        rows = {_insert(conn, row): row for row in _rows()}
        with contextlib.suppress(TimeoutError):  # the checks report a row that has not ended by then
            await _print_changes(console, conn, rows, emulator, start)
        surprises = _check(conn, rows, emulator)
        _print_summary(console, conn, rows, emulator)
        if not once and not surprises:
            _print_places(console, postgres.uri, web, emulator, log)
            await _follow(console, conn, emulator)
        return surprises


def _cancel_by_signals() -> None:
    """Lets SIGTERM and SIGHUP cancel the calling task, so that the listener is stopped and its files are removed."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def cancel(number: signal.Signals) -> None:
        loop.add_signal_handler(number, lambda: None)  # a second signal must not stop the clean-up
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, cancel, number)


@asynccontextmanager
async def _service(dsn: str, emulator: Emulator, port: int, log: Path) -> AsyncIterator[str]:
    """Runs ``push-listener run`` as a separate process, and yields the URL of its web server once it is ready.

    If another program has the port, or takes it meanwhile, the listener gets any free port. At the end the listener
    gets SIGTERM, as from a platform.
    """
    ports = [port, 0] if _is_free(port) else [0]
    for wanted in ports:
        async with _started(dsn, emulator, wanted, log) as process:
            web = await _until_ready(process, log)
            if web is not None:
                yield web
                return
            if process.returncode != _WRONG_SETTINGS:
                break
    text = await asyncio.to_thread(log.read_text)
    raise DemoFailed(f"the listener did not start:\n{text[-4000:]}")


@asynccontextmanager
async def _started(
    dsn: str, emulator: Emulator, port: int, log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {
        **os.environ,
        # These clear the settings of the user's own installation, so that they have no effect on the demo.
        **dict.fromkeys((variable.name for variable in config.describe()), ""),
        "DATABASE_URL": dsn,
        "FCM_ENDPOINT": emulator.endpoint,
        "FCM_SERVICE_ACCOUNT_JSON": orjson.dumps(emulator.service_account).decode(),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        # FCM asks for at least 10 s before a retry; the emulator does not.
        "RETRY_MIN_DELAY": "1",
        "LOG_LEVEL": "debug",
    }
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "listener", "run", env=environment, stdout=sink, stderr=sink
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _until_ready(process: asyncio.subprocess.Process, log: Path) -> str | None:
    """The URL of the listener's web server, once it is ready; None if the listener ends first, or takes too long."""
    ended = asyncio.create_task(process.wait())
    try:
        async with aiohttp.ClientSession() as http, asyncio.timeout(_TIMEOUT_S):
            while not ended.done():
                # Only the listener's log tells its port: another demo may answer at the port that was asked for.
                if port := _WEB_PORT.search(await asyncio.to_thread(log.read_text)):
                    web = f"http://127.0.0.1:{port[1]}"
                    with contextlib.suppress(aiohttp.ClientError):
                        async with http.get(f"{web}/readyz") as answer:
                            if answer.status == 200:
                                return web
                await asyncio.sleep(_POLL_INTERVAL_S)
    except TimeoutError:
        pass
    finally:
        ended.cancel()
    return None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _register_devices(conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "insert into push_devices (token, user_id, platform) values "
        "('phone-of-user', %(user)s, 'android'), ('tablet-of-user', %(user)s, 'ios'), "
        "('dead-phone', gen_random_uuid(), 'android')",
        {"user": _USER},
    )


def _insert(conn: psycopg.Connection[Any], row: _Row) -> UUID:
    if row.delay:
        row.send_at = client.database_time(conn, ahead=row.delay)
    return client.enqueue(conn, **row.values, send_at=row.send_at)


async def _print_changes(
    console: Console,
    conn: psycopg.Connection[Any],
    rows: dict[UUID, _Row],
    emulator: Emulator,
    start: datetime,
) -> None:
    """Prints each change of each row, with the seconds since ``start``, until all rows have ended."""
    width = max(len(row.what) for row in rows.values())
    async with asyncio.timeout(_TIMEOUT_S):
        while any(not row.seen or row.seen[-1][0] not in _FINAL for row in rows.values()):
            for record in _read(conn, list(rows)):
                row = rows[record.id]
                state = (record.status, record.retry_count)
                if row.seen and row.seen[-1] == state:
                    continue
                row.seen.append(state)
                after = (record.updated_at - start).total_seconds()
                description = _describe(record, emulator)
                console.print(f"  {after:6.2f} s  {row.what:<{width}}  {description}", soft_wrap=True)
            await asyncio.sleep(_POLL_INTERVAL_S)


def _read(conn: psycopg.Connection[Any], ids: list[UUID]) -> list[Any]:
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        cursor.execute(
            "select id, status, retry_count, error_code, last_error, created_at, sent_at, updated_at, "
            "extract(epoch from next_attempt_at - now())::float8 as next_in, "
            "extract(epoch from created_at)::float8 as inserted "
            "from push_notifications where id = any(%s) order by updated_at, created_at",
            (ids,),
        )
        return cursor.fetchall()


def _describe(record: Any, emulator: Emulator) -> str:
    match record.status:
        case "pending":
            return f"[dim]pending, due in {max(0.0, record.next_in):.1f} s[/]"
        case "processing":
            return "[dim]processing[/]"
        case "failed":
            return f"[yellow]failed[/] {record.error_code}, again in {max(0.0, record.next_in):.1f} s"
        case "sent" if record.retry_count == 0 and record.next_in is None:
            times = [r.received_at for r in emulator.received if r.push_id == str(record.id)]
            if not times:  # somebody has changed the status by hand
                return "[green]sent[/]"
            return f"[green]sent[/]  at FCM {1000 * (min(times) - record.inserted):.0f} ms after the insert"
        case "sent":
            return f"[green]sent[/]  after {record.retry_count} retries"
        case "delivered":
            return "[green]delivered[/]"
        case "cancelled":
            return "cancelled"
        case _:
            return f"[red]{record.status}[/]  {record.error_code}: {escape(str(record.last_error))}"


def _check(conn: psycopg.Connection[Any], rows: dict[UUID, _Row], emulator: Emulator) -> list[str]:
    """What differs from the expectation, in the database and at FCM, one line each."""
    surprises = []
    for record in _read(conn, list(rows)):
        row = rows[record.id]
        requests = [r for r in emulator.received if r.push_id == str(record.id)]
        logged = conn.execute(
            "select count(*) from push_delivery_logs where push_id = %s", (record.id,)
        ).fetchone()
        actual = (record.status, record.error_code, record.retry_count, len(requests), logged and logged[0])
        expected = (row.final_status, row.error_code, row.retries, row.requests, row.requests)
        if actual != expected:
            surprises.append(
                f"{row.what}: (status, code, retries, requests, log rows) are {actual} instead of {expected}"
            )
        if row.send_at and requests and requests[0].received_at < row.send_at.timestamp():
            surprises.append(f"{row.what}: sent too early")
    disabled = conn.execute("select disabled_reason from push_devices where token = 'dead-phone'").fetchone()
    if disabled != ("UNREGISTERED",):
        surprises.append("the device with the dead token was not disabled")
    return surprises


def _print_summary(
    console: Console, conn: psycopg.Connection[Any], rows: dict[UUID, _Row], emulator: Emulator
) -> None:
    table = Table("push", "status", "requests to FCM", "log rows", title="\nWhat the database and FCM say")
    for record in _read(conn, list(rows)):
        logs = conn.execute(
            "select string_agg(status, ', ' order by created_at, ctid) from push_delivery_logs where push_id = %s",
            (record.id,),
        ).fetchone()
        requests = sum(r.push_id == str(record.id) for r in emulator.received)
        table.add_row(rows[record.id].what, record.status, str(requests), (logs and logs[0]) or "none")
    console.print(table)


def _print_places(console: Console, dsn: str, web: str, emulator: Emulator, log: Path) -> None:
    console.print(f"\n  the page              {web}/")
    console.print(f"  metrics               {web}/metrics")
    console.print(f"  readiness             {web}/readyz")
    console.print(f"  what FCM received     {emulator.endpoint}/emulator/messages")
    console.print(f"  the listener's log    {log}")
    console.print(
        "\nAdd rows of your own with either of these commands, and watch them go out. Ctrl-C ends the demo.\n"
    )
    row = "insert into push_notifications (device_token, title) values ('phone-1', 'Hello')"
    console.print(f"  psql '{dsn}' -c \"{row}\"", soft_wrap=True)
    # This works however the demo was started: from a path with a space, or as python -m listener.
    send = f"{shlex.quote(sys.executable)} -m listener send --token phone-1 --title Hello --wait 5"
    console.print(f"  DATABASE_URL='{dsn}' {send}\n", soft_wrap=True)


async def _follow(console: Console, conn: psycopg.Connection[Any], emulator: Emulator) -> None:
    """Prints every further row that ends, until the task is cancelled."""
    since: datetime = client.database_time(conn)
    printed: set[UUID] = set()
    while True:
        ended = conn.execute(
            "select id, updated_at from push_notifications where updated_at >= %s and status = any(%s) "
            "order by updated_at limit 100",
            (since, list(_FINAL)),
        ).fetchall()
        new = [push_id for push_id, _ in ended if push_id not in printed]
        for record in _read(conn, new):
            console.print(f"  {record.id}  {_describe(record, emulator)}", soft_wrap=True)
        if ended:
            since = ended[-1][1]
            printed = {push_id for push_id, at in ended if at == since}
        await asyncio.sleep(_POLL_INTERVAL_S)
