"""PgBouncer before a server of the tests."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from listener.demo.embedded import _unprivileged
from tests.support.postgres import Database
from tests.support.servers import closed_port
from tests.support.service import PATIENCE
from tests.support.tools import tool

_SETTINGS = """
[databases]
* = host={host} port=5432

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = {mode}
default_pool_size = {size}
server_reset_query = {reset}
max_client_conn = 200
"""


@asynccontextmanager
async def pooler(
    database: Database, mode: str, size: int = 20, reset: str = "DISCARD ALL", user: str = "postgres"
) -> AsyncIterator[str]:
    """A PgBouncer before the server; yields the address of the database through it. Its port tells nothing."""
    pgbouncer = tool("pgbouncer")
    port = closed_port()
    run_as = _unprivileged()
    with tempfile.TemporaryDirectory(prefix="push-listener-") as name:
        directory = Path(name)
        users, settings = directory / "users", directory / "pgbouncer.ini"
        users.write_text(f'"{user}" ""\n')
        host = conninfo_to_dict(database.dsn)["host"]
        settings.write_text(
            _SETTINGS.format(host=host, port=port, users=users, mode=mode, size=size, reset=reset)
        )
        for path in (directory, users, settings):
            if run_as:  # it refuses to run as root, as Postgres does
                os.chown(path, run_as["user"], run_as["group"])
        process = await asyncio.create_subprocess_exec(
            pgbouncer,
            settings,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            **run_as,
        )
        dsn = make_conninfo(database.dsn, host="127.0.0.1", port=port, user=user)
        try:
            await _served(dsn, process)
            yield dsn
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _served(dsn: str, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            assert process.returncode is None, f"PgBouncer has ended with {process.returncode}"
            try:
                async with await psycopg.AsyncConnection.connect(dsn, prepare_threshold=None):
                    return
            except psycopg.OperationalError:
                await asyncio.sleep(0.05)
