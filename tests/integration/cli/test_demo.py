"""``push-listener demo``, as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from listener.interrupts import EXIT_CODE
from tests.support.service import program, run

ENVIRONMENT = {"PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "/"), "COLUMNS": "200"}


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


@pytest.mark.parametrize("number", [signal.SIGINT])
async def test_without_once_the_demo_runs_until_it_is_interrupted(number: signal.Signals) -> None:
    async with program("demo", "--port", "0", env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"}) as running:
        await running.printed("send --token")
        (command,) = [line for line in running.out.splitlines() if "send --token" in line]
        sending = await asyncio.create_subprocess_shell(command, env=ENVIRONMENT)
        assert await sending.wait() == 0
        running.signal(number)
        assert await running.ended() == 0
    assert "Traceback" not in running.output


async def test_an_interrupted_demo_with_once_exits_with_130() -> None:
    env = {**ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
    async with program("demo", "--once", "--port", "0", env=env) as running:
        await running.printed("The listener is up")
        running.signal(signal.SIGINT)
        assert await running.ended() == EXIT_CODE == 130
    assert "Traceback" not in running.output
