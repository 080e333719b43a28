"""Retention: what is deleted, what is not, and beside whom."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, LiteralString
from uuid import UUID, uuid4

import orjson
import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql
from structlog.testing import capture_logs

from listener import config
from listener.cli.main import main
from listener.config import ConfigError
from listener.emulator import Emulator
from listener.metrics.own import Metrics
from listener.postgres.locks import PURGE_LOCK
from listener.schema import retention
from listener.schema.retention import Purged
from tests.support.access import WORKER, make_worker
from tests.support.postgres import Database
from tests.support.service import PATIENCE, Rows, sample, serving, settings_for, shown, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

OLD = "now() - interval '31 days'"
YOUNG = "now() - interval '29 days'"


@pytest.fixture
def database(shared_database: Database) -> Database:
    return shared_database


@pytest.fixture
def rows(shared_rows: Rows) -> Rows:
    return shared_rows


async def ended(rows: Rows, status: str, changed: LiteralString = OLD, **values: object) -> UUID:
    """A row in a status since then, with a log row."""
    async with rows.connection.transaction():  # a purge that runs sees all of it or nothing
        push = await rows.add(device_token="a", status=status, **{"next_attempt_at": None, **values})
        for statement in (
            "update push_notifications set updated_at = {} where id = %(id)s",
            "insert into push_delivery_logs (push_id, status, created_at) values (%(id)s, 'sent', {})",
        ):
            await rows.connection.execute(sql.SQL(statement).format(sql.SQL(changed)), {"id": push})
    return push


def run(database: Database, *arguments: str) -> Result:
    return CliRunner().invoke(
        main,
        ["purge", *arguments],
        env={"DATABASE_URL": database.dsn, "LISTEN_DATABASE_URL": ""},
        catch_exceptions=False,
    )


async def purged(database: Database, *arguments: str) -> dict[str, Any]:
    result = await asyncio.to_thread(run, database, "--older-than", "30d", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return dict(orjson.loads(result.stdout))


async def log_ids(rows: Rows) -> set[UUID]:
    return {row["push_id"] for row in await rows.query("select push_id from push_delivery_logs")}


# --- what is deleted ------------------------------------------------------------------------------------


async def test_what_ended_long_ago_goes_with_its_log(rows: Rows, database: Database) -> None:
    over = [await ended(rows, status) for status in ("sent", "delivered", "expired", "cancelled")]
    by_hand = await ended(
        rows, "sent", next_attempt_at="2020-01-01T00:00:00Z"
    )  # an application left that standing
    kept = {await ended(rows, "sent", YOUNG), await ended(rows, "dead"), await ended(rows, "failed")}

    assert await purged(database) == {
        "pushes": 5,
        "logs": 5,
        "telemetry": 0,
        "workers": 0,
        "kept": 0,
        "dry_run": False,
    }
    assert set(await rows.all()) == kept
    assert await log_ids(rows) == kept
    assert not kept & {*over, by_hand}


async def test_what_waits_is_never_deleted(rows: Rows, database: Database) -> None:
    kept = {
        await ended(rows, status, next_attempt_at=due, delivery_attempts=1)
        for status in ("pending", "processing", "failed")
        for due in ("2020-01-01T00:00:00Z", "2200-01-01T00:00:00Z")
    }
    kept |= {
        await ended(rows, "pending"),
        await ended(rows, "processing"),
        await ended(rows, "sent", next_attempt_at="2200-01-01T00:00:00Z"),
        await ended(rows, "dead", next_attempt_at="2200-01-01T00:00:00Z"),
    }
    assert (await purged(database, "--dead"))["pushes"] == 0
    assert set(await rows.all()) == kept
    assert await log_ids(rows) == kept


async def test_the_dead_go_when_asked_for(rows: Rows, database: Database) -> None:
    for status in ("dead", "failed"):  # the latter without a next try: an application gave it up
        await ended(rows, status)
    young = await ended(rows, "dead", YOUNG)
    assert (await purged(database, "--dead"))["pushes"] == 2
    assert set(await rows.all()) == {young}


@pytest.mark.usefixtures("alone")
async def test_log_rows_without_a_push_go(rows: Rows, database: Database) -> None:
    await rows.query(
        "alter table push_delivery_logs drop constraint push_delivery_logs_push_id_fkey"
    )  # as if adopted
    orphan, young, last = uuid4(), uuid4(), UUID(int=(1 << 128) - 1)
    kept = await ended(rows, "sent", YOUNG)
    add = "insert into push_delivery_logs (push_id, status, created_at) values (%(id)s, 'sent', now() - %(age)s)"
    for push, days in ((orphan, 31), (orphan, 31), (last, 31), (young, 29), (kept, 31)):
        await rows.connection.execute(add, {"id": push, "age": timedelta(days=days)})
    assert await purged(database, "--batch", "1") == {
        "pushes": 0,
        "logs": 3,
        "telemetry": 0,
        "workers": 0,
        "kept": 0,
        "dry_run": False,
    }
    assert await log_ids(rows) == {young, kept}


async def test_telemetry_goes_when_asked_for(rows: Rows, database: Database) -> None:
    await rows.query(
        "insert into telemetry_logs (type, message, processed_at) "
        "select 'x', repeat('m', 900), case when n % 3 > 0 then now() - make_interval(days => 15 * (n % 3) + 10) end "
        "from generate_series(1, 9000) n"
    )
    assert (await purged(database))["telemetry"] == 0
    assert (await purged(database, "--telemetry"))["telemetry"] == 3000
    (left,) = await rows.query(
        "select count(*) as rows, count(processed_at) as processed from telemetry_logs"
    )
    assert left == {"rows": 6000, "processed": 3000}


@pytest.mark.usefixtures("alone")
async def test_a_dry_run_counts_the_same_and_deletes_nothing(rows: Rows, database: Database) -> None:
    await rows.query(
        "alter table push_delivery_logs drop constraint push_delivery_logs_push_id_fkey"
    )  # as if adopted
    for status in ("sent", "cancelled", "dead", "failed"):
        await ended(rows, status)
    await ended(rows, "sent", YOUNG)
    await rows.query(
        "insert into push_delivery_logs (push_id, status, created_at) values (gen_random_uuid(), 'sent', '2020-01-01')"
    )
    await rows.query(
        "insert into telemetry_logs (type, message, processed_at) values ('x', 'y', '2020-01-01')"
    )
    for options in ([], ["--dead", "--telemetry"]):
        before = await rows.all(), await log_ids(rows)
        foreseen = await purged(database, "--dry-run", *options)
        assert (await rows.all()).keys() == before[0].keys()
        assert await log_ids(rows) == before[1]
        assert await purged(database, *options) == {**foreseen, "dry_run": False}
        assert foreseen["pushes"] == 2


async def test_statistics_survive(rows: Rows, database: Database) -> None:
    """Numbers of the last 90 days are the same after a purge of what is older than 30."""
    for status in ("sent", "delivered", "expired", "cancelled", "dead"):
        push = await ended(rows, status)
        if status in ("sent", "delivered"):
            await rows.query(
                "update push_notifications set sent_at = updated_at, created_at = updated_at - interval '1 min', "
                "delivered_at = case when status = 'delivered' then updated_at + interval '1 s' end where id = %(id)s",
                id=push,
            )
    tell = "select * from get_push_delivery_stats(90)"
    before = await rows.query(tell)
    assert (before[0]["total_pushes"], before[0]["delivered_pushes"]) == (5, 1)
    assert (await purged(database, "--dead"))["pushes"] == 5
    assert await rows.query(tell) == before


# --- how ------------------------------------------------------------------------------------------------


async def test_it_goes_in_short_transactions_the_oldest_first(rows: Rows, database: Database) -> None:
    for days in (33, 31, 35, 32, 34):
        await ended(rows, "sent", f"now() - interval '{days} days'")
    async with await retention.connect(database.dsn) as conn:
        before = await retention.moment(conn, timedelta(days=30))
        left, shares = [], []
        async for step in retention.pushes(conn, before, dead=False, batch=2, expected=5):
            # Seen from another connection: committed.
            left.append([row["age"] for row in await rows.query(
                "select extract(day from now() - updated_at)::int as age from push_notifications order by 1"
            )])  # fmt: skip
            shares.append(step.share)
    assert left[:3] == [[31, 32, 33], [31], []]
    assert shares[:3] == [0.4, 0.8, 1.0]


async def test_rows_that_somebody_holds_are_passed_over(rows: Rows, database: Database) -> None:
    held, free = await ended(rows, "sent"), await ended(rows, "sent")
    async with await psycopg.AsyncConnection.connect(database.dsn) as other:
        await other.execute("select from push_notifications where id = %s for no key update", (held,))
        assert (await purged(database))["pushes"] == 1
        assert set(await rows.all()) == {held}
        assert free != held
    assert (await purged(database))["pushes"] == 1


async def test_a_push_that_was_requeued_meanwhile_stays(rows: Rows, database: Database) -> None:
    """The purge finds the row as it was, waits for nobody, and must not delete it as it has become."""
    push = await ended(rows, "expired")
    async with (
        await retention.connect(database.dsn) as conn,
        await psycopg.AsyncConnection.connect(database.dsn) as other,
    ):
        before = await retention.moment(conn, timedelta(days=30))
        await other.execute("select requeue_pushes(p_ids => array[%s])", (push,))
        steps = [step.gone async for step in retention.pushes(conn, before, dead=True, batch=10)]
        await other.commit()
        steps += [step.gone async for step in retention.pushes(conn, before, dead=True, batch=10)]
    assert sum(step.pushes for step in steps) == 0
    assert (await rows.get(push))["status"] == "pending"


@pytest.mark.usefixtures("alone")
async def test_a_table_that_refers_to_pushes_is_named(rows: Rows, database: Database) -> None:
    push = await ended(rows, "sent")
    await rows.query("create table inbox (push_id uuid constraint of_push references push_notifications)")
    await rows.query("insert into inbox values (%(id)s)", id=push)
    result = await asyncio.to_thread(run, database, "--older-than", "30d")
    assert result.exit_code == 1
    assert "public.inbox" in result.output
    assert "of_push" in result.output
    assert set(await rows.all()) == {push}


async def test_lines_for_whoever_reads_a_log(rows: Rows, database: Database) -> None:
    await ended(rows, "sent")
    result = await asyncio.to_thread(run, database, "--older-than", "4w", "--telemetry")
    assert result.output.splitlines() == [
        "pushes: done",
        "logs without a push: done",
        "telemetry: done",
        "deleted: 1 pushes, 1 log rows, 0 telemetry rows, 0 records of workers that stopped",
    ]


@pytest.mark.parametrize("age", ["30", "0d", "-1d", "1.5d", "30 days", "d", "", "999999w", "٣d"])
async def test_an_age_that_is_none_is_refused(age: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(main, ["purge", f"--older-than={age}"])
    assert result.exit_code == 2
    assert "is not an age such as 12h, 30d or 8w" in result.output
    monkeypatch.setenv("RETENTION", age)
    if age:
        with pytest.raises(ConfigError, match="RETENTION is not an age such as 12h, 30d or 8w"):
            config.load(database_url="postgresql://localhost/x")


@pytest.mark.parametrize(
    ("age", "means"),
    [("12h", timedelta(hours=12)), ("30d", timedelta(days=30)), (" 8W ", timedelta(weeks=8))],
)
async def test_ages(age: str, means: timedelta, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETENTION", age)
    assert config.load(database_url="postgresql://localhost/x").retention == means


# --- by the service -------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "INTERVAL", 0.01)


@pytest.mark.usefixtures("soon")
async def test_the_service_purges_when_told_to(rows: Rows, database: Database) -> None:
    old, young = await ended(rows, "sent"), await ended(rows, "sent", YOUNG)
    async with Emulator() as emulator:
        settings = settings_for(database.dsn, emulator, retention="30d")
        async with serving(settings) as service:
            await rows.until(lambda found: old not in found)
            fresh = await rows.add(device_token="b", title="x")
            assert (await rows.one_over(fresh))["status"] == "sent"
            for table in ("push_notifications", "push_delivery_logs"):
                await shown(service.metrics, "push_purged_total", 1, {"table": table})
    assert set(await rows.all()) == {young, fresh}


@pytest.mark.usefixtures("soon")
async def test_one_process_at_a_time_purges(rows: Rows, database: Database) -> None:
    age = timedelta(days=30)
    async with await retention.connect(database.dsn) as elected:
        await elected.execute("select pg_advisory_lock(%s)", (PURGE_LOCK,))
        first, metrics = await ended(rows, "sent"), Metrics()
        other = asyncio.create_task(retention.keep(database.dsn, age, metrics, is_session=True))
        # It has asked at least twice, in vain: each time on a connection of its own.
        seen: set[int] = set()
        async with asyncio.timeout(PATIENCE):
            while len(seen) < 2:
                found = await rows.query(
                    "select pid from pg_stat_activity where application_name = 'push-listener purge' "
                    "and datname = current_database() and pid <> %(pid)s",
                    pid=elected.info.backend_pid,
                )
                seen |= {row["pid"] for row in found}
        assert first in await rows.all()
    await rows.until(lambda found: not found)
    # And it stays the one, on one connection.
    await ended(rows, "sent")
    await rows.until(lambda found: not found)
    await shown(metrics, "push_purged_total", 2, {"table": "push_notifications"})
    other.cancel()
    await asyncio.wait({other})


@pytest.mark.usefixtures("alone")
@pytest.mark.usefixtures("soon")
async def test_whatever_goes_wrong_the_purge_comes_again(rows: Rows, database: Database) -> None:
    push, metrics = await ended(rows, "sent"), Metrics()
    await rows.query("create table inbox (push_id uuid references push_notifications)")
    await rows.query("insert into inbox values (%(id)s)", id=push)
    purging = asyncio.create_task(retention.keep(database.dsn, timedelta(days=30), metrics, is_session=True))
    async with asyncio.timeout(PATIENCE):
        while not sample(metrics, "push_database_errors_total", {"statement": "purge"}):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not purging.done()
    await rows.query("drop table inbox")
    await rows.until(lambda found: not found)
    purging.cancel()
    await asyncio.wait({purging})


KEEPERS: dict[str, LiteralString] = {
    "all": "return null",
    "half": "if old.title = 'keep' then return null; end if; return old",
    "soft delete": "update push_notifications set last_error = 'deleted' where id = old.id; return null",
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("body", KEEPERS.values(), ids=KEEPERS.keys())
async def test_a_trigger_that_keeps_rows_does_not_make_it_endless(
    rows: Rows, database: Database, body: LiteralString
) -> None:
    for title in ("keep", "t", "keep", "t", "keep"):
        await ended(rows, "sent", title=title)
    await rows.connection.execute(
        f"create function keep() returns trigger language plpgsql as $$ begin {body}; end $$".encode()
    )
    await rows.query(
        "create trigger keep before delete on push_notifications for each row execute function keep()"
    )
    for arguments in (("--batch", "2"), ("--batch", "5000")):
        found = await purged(database, *arguments)
        assert found["kept"] == len(await rows.all())
    said = await asyncio.to_thread(run, database, "--older-than", "30d")
    assert "pushes are still there: a trigger of push_notifications keeps them (keep)" in said.stderr


async def test_records_of_workers_go_too(rows: Rows, database: Database) -> None:
    await rows.query(
        "insert into push_listener.workers (name, stopped_at) values "
        "('old', now() - interval '31 days'), ('young', now() - interval '29 days'), ('lives', null)"
    )
    assert (await purged(database, "--dry-run"))["workers"] == 1
    assert (await purged(database))["workers"] == 1
    assert [row["name"] for row in await rows.query("select name from push_listener.workers order by 1")] == [
        "lives",
        "young",
    ]


async def test_retention_with_a_role_that_may_not_delete_is_told_at_the_start(database: Database) -> None:
    make_worker(database)
    with capture_logs() as said:
        keeping = asyncio.create_task(
            retention.keep(database.dsn_as(WORKER), timedelta(days=1), Metrics(), is_session=True)
        )
        await until(lambda: any(each["event"].startswith("RETENTION has no effect") for each in said))
        keeping.cancel()
        await asyncio.wait({keeping})
    (told,) = (each for each in said if each["event"].startswith("RETENTION"))
    assert "grant delete on push_notifications" in told["remedy"]


async def test_numbers_add_up() -> None:
    assert Purged(1, 2, 3) + Purged(10, 20, 30) == Purged(11, 22, 33)
