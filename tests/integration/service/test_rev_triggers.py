"""Triggers of the application, of kinds that no other test has: they fail until the service withstands them.

Each docstring says what a user sees, and what would be right.
"""

from __future__ import annotations

import asyncio
from uuid import uuid4

import psycopg
import pytest

from listener.emulator import Emulator
from tests.support.postgres import Database
from tests.support.service import Rows, serving, settings_for, shown, until

pytestmark = pytest.mark.newest_postgres

TOUCHY = "new.device_token = 'touchy'"
REOPEN = (
    "update push_notifications set status = 'pending', next_attempt_at = now() where id = {}; return null;"
)


async def trigger(
    rows: Rows, when: str, condition: str, body: str, table: str = "push_notifications"
) -> None:
    """Creates a row trigger of the application, e.g. ``before update``."""
    await rows.connection.execute(
        f"""
        create or replace function meddle() returns trigger language plpgsql as $$ begin {body} end $$;
        create or replace trigger meddle {when} on {table}
          for each row when ({condition}) execute function meddle();
        """.encode()
    )


def tokens(emulator: Emulator) -> list[str]:
    """The registration tokens for which FCM has accepted a push, in order."""
    return [str(one.message["token"]) for one in emulator.accepted if one.message]


def hurried(dsn: str, timeout: str) -> str:
    """The same address, with a statement_timeout as a role may have it."""
    return psycopg.conninfo.make_conninfo(dsn, options=f"-c statement_timeout={timeout}")


@pytest.mark.parametrize("table", ["push_notifications", "push_delivery_logs"])
async def test_a_result_that_is_too_slow_for_statement_timeout_keeps_no_neighbour(
    database: Database, rows: Rows, table: str
) -> None:
    """A trigger takes longer than statement_timeout when one result, or its log row, is written.

    Seen: the write of that one result is repeated for ever. No other result is written, nothing is claimed, and
    what was sent meanwhile is sent again by the next worker. /readyz: the database cannot be reached.
    Right: alone in its statement and still too slow, the result counts as refused: without its log rows, and else
    kept.
    """
    condition = TOUCHY if table == "push_delivery_logs" else f"{TOUCHY} and new.status = 'sent'"
    await trigger(rows, "before insert or update", condition, "perform pg_sleep(1); return new;", table)
    async with Emulator() as emulator, serving(settings_for(hurried(database.dsn, "400ms"), emulator)):
        await rows.add(device_token="touchy", title="t")
        await until(lambda: tokens(emulator))
        neighbours = [await rows.add(device_token=f"phone-{n}", title="t") for n in range(5)]
        try:
            await rows.over(*neighbours)
        finally:  # otherwise the service does not end within its grace period
            await rows.connection.execute(f"alter table {table} disable trigger user".encode())


async def test_a_trigger_on_the_log_that_reopens_a_push(database: Database, rows: Rows) -> None:
    """A trigger on push_delivery_logs makes the push pending again; push_notifications has no trigger of its own.

    Seen: 813 requests to one phone in 20 s, for ever; nothing is noted; /readyz ok. What a push holds after it
    has been written is only compared where push_notifications itself has a trigger that runs after an update. The
    other tests do not show it, because tests.support.service.Rows creates such a trigger.
    Right: at most one request, and the row is noted.
    """
    await rows.query("drop trigger test_tell on push_notifications")
    await trigger(rows, "after insert", TOUCHY, REOPEN.format("new.push_id"), "push_delivery_logs")
    async with Emulator() as emulator, serving(settings_for(database.dsn, emulator)):
        await rows.add(device_token="touchy", title="t")
        await until(lambda: tokens(emulator))
        await asyncio.sleep(1)  # for what must not come
    assert tokens(emulator) == ["touchy"]


async def test_a_trigger_that_is_made_while_the_service_runs(database: Database, rows: Rows) -> None:
    """A migration of the application adds a trigger that makes a sent push pending again, to a table without triggers.

    Seen: 438 requests to one phone in 14 s, until the next sweep finds the trigger. A worker that never sleeps,
    because it has a backlog or polls, makes no sweep at all.
    Right: at most one request: what a settle has written as final and finds due again at its next claim is
    suspect.
    """
    await rows.query("drop trigger test_tell on push_notifications")
    async with Emulator() as emulator, serving(settings_for(database.dsn, emulator)) as service:
        await rows.add(device_token="before", title="t")
        await shown(service.metrics, "push_settled_total", 1.0, {"status": "sent"})
        await trigger(rows, "after update", f"{TOUCHY} and new.status = 'sent'", REOPEN.format("new.id"))
        await rows.add(device_token="touchy", title="t")
        await until(lambda: "touchy" in tokens(emulator))
        await asyncio.sleep(1)  # for what must not come
    assert tokens(emulator) == ["before", "touchy"]


@pytest.mark.parametrize(
    "body",
    [
        "return null;",
        "new.device_token := md5(new.device_token); return new;",
        "new.status := 'unknown'; return new;",
    ],
    ids=["ignores it", "hashes the token", "renames the status"],
)
async def test_a_device_that_accepted_gets_no_second_push_although_a_trigger_changes_the_log(
    database: Database, rows: Rows, body: str
) -> None:
    """A trigger keeps registration tokens out of the log, or drops log rows, silently.

    Seen: with two devices, one of which fails three times, the other one gets the push four times. Log rows are
    believed to be there, and are the only record of which device has accepted. docs/guarantees.md: "push-listener
    never retries a request that FCM is known to have accepted".
    Right: a log row that is not there as written counts as one that was refused: then no device gets the push
    again.
    """
    user = uuid4()
    await rows.device("phone", user)
    await rows.device("flaky-phone", user)
    await trigger(rows, "before insert", "true", body, "push_delivery_logs")
    async with Emulator() as emulator, serving(settings_for(database.dsn, emulator)):
        emulator.add_fault("unavailable,token=flaky-phone,times=3,retry_after=0")
        await rows.one_over(await rows.add(user_id=user, title="t"))
    assert tokens(emulator).count("phone") == 1


async def test_a_retry_whose_time_a_trigger_takes_away_is_not_forgotten(
    database: Database, rows: Rows
) -> None:
    """A trigger of an older queue, where 'failed' is final, sets next_attempt_at to NULL then.

    Seen: the row stays 'failed', is never tried again and never dead, and counts as written: only the status is
    compared. docs/guarantees.md: "Every committed row ends".
    Right: it counts as changed, and is noted, or becomes dead.
    """
    await trigger(rows, "before update", "new.status = 'failed'", "new.next_attempt_at := null; return new;")
    async with Emulator() as emulator, serving(settings_for(database.dsn, emulator)):
        emulator.add_fault("unavailable,token=flaky,times=1,retry_after=0")
        push_id = await rows.add(device_token="flaky", title="t")
        await until(lambda: emulator.received)

        async def noted() -> bool:
            return bool(await rows.query("select from push_listener.unwritable_rows"))

        async with asyncio.timeout(10):
            while not await noted() and (await rows.get(push_id))["status"] not in ("dead", "sent"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
