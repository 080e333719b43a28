"""examples/script.py sends a push, waits for FCM's answer, and says so."""

from __future__ import annotations

import asyncio

import pytest

from examples import script
from listener.emulator import Emulator
from listener.service import Service
from tests.support.postgres import Database
from tests.support.service import Rows


async def test_the_script_sends_a_push_and_tells_what_became_of_it(
    database: Database,
    service: Service,
    emulator: Emulator,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.dsn)

    async def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = await asyncio.to_thread(script.main, list(arguments))
        said = capsys.readouterr().out.splitlines()
        return code, next(
            line.strip() for line in said if line[:1].isalpha()
        )  # the service's log is there too

    for number, how in enumerate(([], ["--async"])):
        token = f"phone-{number}"
        assert await run(token, *how) == (0, "sent")
        message = (await emulator.wait_accepted(number + 1))[-1].message
        assert message is not None
        assert (message["token"], message["notification"]["title"]) == (token, "The backup is done")
        # A second start on the same day adds nothing, and tells of the first push.
        assert await run(token, *how) == (0, "sent")
        assert len(await rows.all()) == 1
        await rows.query("delete from push_notifications")
    assert await run("dead-phone") == (1, "dead UNREGISTERED")
    assert len(emulator.received) == 3
