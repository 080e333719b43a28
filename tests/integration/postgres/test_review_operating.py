"""What an operator relies on: all that match, the same figures everywhere, previews that come true."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import aiohttp
import pytest
from psycopg_pool import AsyncConnectionPool

from listener.emulator import Emulator
from listener.operating.acting import Acting, Run
from listener.operating.filters import Filter
from listener.operating.reading import Reading
from listener.postgres.overview import read
from tests.support.postgres import Database
from tests.support.reading import connector
from tests.support.service import Rows, serving, settings_for


async def test_all_that_match_are_cancelled_while_others_of_the_same_statement_are_sent(
    database: Database, rows: Rows
) -> None:
    """One statement inserts a campaign, so all are due at once. What does not match leaves the index meanwhile."""
    await rows.query(
        "insert into push_notifications (device_token, topic, title) "
        "select case when n %% 2 = 0 then 'phone-' || n end, case when n %% 2 = 1 then 'news' end, 't' "
        "from generate_series(1, %(rows)s) n",
        rows=400,
    )
    reading, acting = Reading(connector(database.dsn)), Acting(connector(database.dsn))
    wanted = Filter(status="pending", kind="token")
    until = (await reading.preview(wanted, "cancel")).until
    first = True

    async def ids(after: str | None) -> tuple[list[UUID], str | None]:
        nonlocal first
        found = await reading.ids(wanted, "cancel", until, after, 20)
        if first:  # the topics are sent while the first batch is cancelled
            first = False
            await rows.query(
                "update push_notifications set status = 'sent', next_attempt_at = null where topic is not null"
            )
        return found

    run = Run(acting, ids, what="cancel", who="anna", reason="", filter=wanted, until=until)
    await run.perform()
    left = await rows.query(
        "select count(*) from push_notifications where status = 'pending' and device_token is not null"
    )
    assert (left[0]["count"], run.progress.done) == (0, 200)


async def test_the_verdict_and_the_alert_know_the_same_oldest_push(database: Database, rows: Rows) -> None:
    """While FCM answers each with an error, all wait for a next try. QueueStalled counts from the first due time."""
    await rows.add(device_token="t", title="t", created_at=datetime.now(UTC) - timedelta(hours=1))
    await rows.query("alter table push_notifications disable trigger user")
    await rows.query(
        "update push_notifications set status = 'failed', retry_count = 3, delivery_attempts = 3, "
        "push_first_due_at = now() - interval '1 hour', next_attempt_at = now() + interval '1 min'"
    )
    pulse = await Reading(connector(database.dsn)).pulse()
    async with AsyncConnectionPool(database.dsn, open=False, kwargs={"autocommit": True}) as pool:
        figures = (await read(pool)).depth
    assert pulse.oldest_due == pytest.approx(max(figures.oldest_due.values()), abs=60)


async def test_pushes_that_all_die_are_not_a_green_verdict(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    """DeadLetters and FailureRatio are tickets among the alerts: at least attention."""
    async with (
        serving(settings_for(database.dsn, emulator)) as service,
        aiohttp.ClientSession(f"http://127.0.0.1:{service.port}") as http,
    ):
        await service._page.snapshot()
        for n in range(40):
            await rows.add(device_token=f"t-{n}", title="t", data={"from": "x"})
        found = await rows.over()
        assert {row["status"] for row in found.values()} == {"dead"}
        async with http.get("/", headers={"Accept": "text/html"}) as answer:
            text = await answer.text()
    assert 'class="verdict ok"' not in text
