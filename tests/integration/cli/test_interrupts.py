"""Ctrl-C ends a command without a traceback, at whatever moment it comes."""

from __future__ import annotations

import os
import signal
from uuid import UUID

import psycopg
import pytest

from listener.interrupts import EXIT_CODE
from tests.support.postgres import Database
from tests.support.service import Rows, program, python, until_found

# Sends SIGINT to itself at the import of the n-th module from here on.
_AT_IMPORT = """
import os, signal, sys
from importlib.abc import MetaPathFinder

class Interrupts(MetaPathFinder):
    left = {n}
    def find_spec(self, name, path, target=None):
        Interrupts.left -= 1
        if Interrupts.left == 0:
            os.kill(os.getpid(), signal.SIGINT)

from listener import __main__ as entry
sys.meta_path.insert(0, Interrupts())
sys.argv = ["push-listener", *{arguments}]
entry.main()
"""


_WAITING = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"


def environment(database: Database) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "DATABASE_URL": database.dsn}


@pytest.mark.parametrize(
    ("command", "moments"),
    [(["stats"], (1, 5, 30, 80, 200)), (["migrate", "--status"], (350,)), (["run"], (350,))],
    ids=["stats", "migrate --status", "run"],
)
async def test_while_modules_are_imported(
    database: Database, command: list[str], moments: tuple[int, ...]
) -> None:
    """The first moments are in what all commands have in common."""
    env = {**environment(database), "GOOGLE_APPLICATION_CREDENTIALS": "/nowhere"}
    for n in moments:
        async with python("-c", _AT_IMPORT.format(n=n, arguments=command), env=env) as running:
            ended = await running.ended()
        assert "Traceback" not in running.output, n
        assert "KeyboardInterrupt" not in running.output, n
        # A command that imports fewer modules has not met the signal.
        assert ended in ({EXIT_CODE} if n < 100 else {EXIT_CODE, 0, 2}), n


async def test_while_it_waits_for_the_outcome(database: Database, rows: Rows) -> None:
    async with program(
        "send", "--token", "t", "--title", "T", "--wait", "60", env=environment(database), forked=True
    ) as running:
        await running.printed_to_stderr("note: added ")
        running.signal(signal.SIGINT)
        assert await running.ended() == EXIT_CODE
    assert running.out == ""
    assert "Traceback" not in running.err
    (added,) = await rows.all()
    assert UUID(running.err.split()[-1]) == added


@pytest.mark.parametrize(
    "command",
    [["migrate"], ["stats"], ["purge", "--older-than", "30d"], ["doctor"]],
    ids=" ".join,
)
async def test_while_a_statement_waits(database: Database, rows: Rows, command: list[str]) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn) as blocker:
        await blocker.execute(
            "lock table push_notifications, push_delivery_logs, push_devices in access exclusive mode"
        )
        await blocker.execute(
            "lock table push_listener.workers, push_listener.migrations in access exclusive mode"
        )
        async with program(*command, env=environment(database), forked=True) as running:
            await until_found(rows.query, _WAITING)
            running.signal(signal.SIGINT)
            assert await running.ended() == EXIT_CODE
    assert "Traceback" not in running.output
