"""``push-listener stats``, on a queue with known rows."""

from __future__ import annotations

import orjson

from listener.emulator import Emulator
from tests.support.cli import invoke
from tests.support.postgres import Database
from tests.support.service import PATIENCE, Rows, serving, settings_for


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


async def test_stats_of_rows_due_since_minus_infinity(database: Database, rows: Rows) -> None:
    await rows.query(
        "insert into push_notifications (device_token, title, next_attempt_at) values ('t', 't', '-infinity')"
    )
    told = orjson.loads((await invoke(database.dsn, "stats", "--json")).stdout)
    assert 0.0 <= told["oldest_due"] < PATIENCE
