"""Rows that are refused otherwise than by a trigger: they fail until the service withstands them.

Each docstring says what a user sees, and what would be right.
"""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from listener.emulator import Emulator
from tests.support.postgres import Database
from tests.support.service import Rows, serving, settings_for

pytestmark = pytest.mark.newest_postgres


def tokens(emulator: Emulator) -> list[str]:
    """The registration tokens for which FCM has accepted a push, in order."""
    return [str(one.message["token"]) for one in emulator.accepted if one.message]


async def test_one_token_that_cannot_be_disabled_keeps_no_other(database: Database, rows: Rows) -> None:
    """A trigger of the application on push_devices refuses to disable one token of ten in a batch.

    Seen: none of the ten is disabled, nor any token of other users whose results are in the same batch. It is
    tried again at the next push to them, with the same end if they come together.
    Right: the nine others are disabled.
    """
    user = uuid4()
    for n in range(10):
        await rows.device(f"dead-{n}", user)
    await rows.query("""
        create function keep() returns trigger language plpgsql as $$ begin raise 'no'; end $$;
        create trigger keep before update on push_devices
          for each row when (new.token = 'dead-3') execute function keep();
    """)
    async with Emulator() as emulator, serving(settings_for(database.dsn, emulator)):
        await rows.one_over(await rows.add(user_id=user, title="t"))
    found = await rows.query("select token from push_devices where disabled_at is null")
    assert [row["token"] for row in found] == ["dead-3"]


async def test_one_log_row_that_is_never_taken_keeps_no_others(database: Database, rows: Rows) -> None:
    """push_delivery_logs takes no row for a while, and then all but one, which breaks a constraint.

    Seen: while the bad row is among the first 500 that wait, one row is written at each try: 72 of 200 in 45 s.
    20,000 take hours, and those that wait when the process ends are lost.
    Right: a refused batch is halved, so the good rows are written at once.
    """
    await rows.query("alter table push_delivery_logs add column region text not null")
    await rows.query("alter table push_delivery_logs add constraint odd check (device_token <> 'touchy')")
    async with Emulator() as emulator, serving(settings_for(database.dsn, emulator)):
        await rows.add_many(100)
        await rows.add(device_token="touchy", title="t")
        await rows.add_many(100)
        await rows.over()
        await rows.query("alter table push_delivery_logs alter column region drop not null")

        async def logged() -> int:
            return int((await rows.query("select count(*) as n from push_delivery_logs"))[0]["n"])

        async with asyncio.timeout(30):
            while await logged() < 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def test_pushes_that_a_policy_hides_are_told(database: Database, rows: Rows) -> None:
    """The application adds a restrictive policy after migrate; the listener has the role push_listener.

    Seen: the pushes are never sent and counted nowhere: no obstacle in /readyz, no line in the log,
    push_queue_depth 0. Only the next migrate would warn.
    Right: run looks for such policies as it looks for other changes, and says so.
    """
    await rows.query("create role app_listener login in role push_listener")
    await rows.query("""
        create policy tenants on push_notifications as restrictive for all to public using (user_id is not null)
    """)
    push_id = await rows.add(device_token="hidden", title="t")
    async with Emulator() as emulator:
        settings = settings_for(database.dsn_as("app_listener"), emulator, sweep_interval=1)
        async with serving(settings) as service:
            async with asyncio.timeout(10):
                while not service.obstacles() and (await rows.get(push_id))["status"] != "sent":  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
