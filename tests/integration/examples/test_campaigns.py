"""examples/sql/campaigns.sql, run by pg_cron's own worker on a server that has the extension."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

from listener.schema import migrate
from tests.support.examples import ANN, BOB, example_sql
from tests.support.postgres import FAST, VERSIONS, Database, Server
from tests.support.service import PATIENCE, until
from tests.support.tools import lacking

DATABASE = "campaigns"


def _with_cron() -> tuple[int, Path]:
    """The newest version of the system that has pg_cron, and its programs."""
    for version in reversed(VERSIONS):
        for programs, share in (
            (f"/usr/lib/postgresql/{version}/bin", f"/usr/share/postgresql/{version}"),
            (f"/usr/pgsql-{version}/bin", f"/usr/pgsql-{version}/share"),
        ):
            if Path(programs, "initdb").exists() and Path(share, "extension", "pg_cron.control").exists():
                return version, Path(programs)
    return lacking("pg_cron")


@pytest.fixture(scope="module")
def shop() -> Iterator[Database]:
    """The example's tables, as the owner of a Supabase project makes them, on a server with pg_cron's launcher.

    The launcher starts jobs as background workers, so that they need no login.
    """
    version, bin_dir = _with_cron()
    settings = {
        **FAST,
        "shared_preload_libraries": "pg_cron",
        "cron.database_name": DATABASE,
        "cron.use_background_workers": "on",
    }
    with Server(version, bin_dir, settings) as server:
        server.create_database(DATABASE)
        database = Database(DATABASE, server, "postgres")
        with psycopg.connect(database.superuser_dsn, autocommit=True) as admin:
            for path in sorted(migrate.sql_directory("supabase").glob("[0-9]*.sql")):
                admin.execute(path.read_bytes())
            admin.execute("create extension pg_cron")
            admin.execute("grant usage on schema cron to postgres")
        migrate.apply(database.dsn)
        with psycopg.connect(database.dsn) as owner:
            owner.execute(example_sql("campaigns.sql"))
            owner.execute("insert into subscribers (user_id) values (%s), (%s)", (ANN, BOB))
        change_job(database, "active = false")  # until the test says when it runs
        yield database


def change_job(shop: Database, values: str) -> None:
    """As the superuser: pg_cron lets nobody else do that."""
    with psycopg.connect(shop.superuser_dsn) as admin:
        admin.execute(f"update cron.job set {values}".encode())


def add_campaigns(shop: Database) -> None:
    """One that is due, and one that is not."""
    with psycopg.connect(shop.dsn) as owner:
        owner.execute("delete from campaigns")
        owner.execute("truncate push_notifications cascade")
        owner.execute(
            "insert into campaigns (title, launch_at) "
            "values ('Spring', now() - interval '1 minute'), ('Autumn', now() + interval '1 day')"
        )


def query(shop: Database, statement: str) -> list[dict[str, Any]]:
    with psycopg.connect(shop.dsn, row_factory=dict_row) as owner:
        return owner.execute(statement.encode()).fetchall()


def pushes(shop: Database) -> set[tuple[UUID, str]]:
    found = query(shop, "select user_id, title from push_notifications")
    assert len(found) == len({tuple(row.values()) for row in found})
    return {(row["user_id"], row["title"]) for row in found}


async def test_pg_cron_launches_what_is_due(shop: Database) -> None:
    """The job that the file has made, except that it is due when pg_cron starts, and not at the next full minute."""
    add_campaigns(shop)
    (job,) = query(shop, "select schedule, command, username, database from cron.job")
    assert (job["schedule"], job["username"], job["database"]) == ("* * * * *", "postgres", DATABASE)
    change_job(shop, "schedule = '@reboot', active = true")
    shop.server.stop()
    shop.server.start()
    await until(
        lambda: query(shop, "select from cron.job_run_details where status in ('succeeded', 'failed')")
    )
    (run,) = query(shop, "select command, username, status, return_message from cron.job_run_details")
    assert (run["status"], run["username"], run["command"]) == ("succeeded", "postgres", job["command"]), run
    assert pushes(shop) == {(ANN, "Spring"), (BOB, "Spring")}
    assert query(shop, "select title from campaigns where launched_at is null") == [{"title": "Autumn"}]


def test_a_second_run_finds_nothing_and_two_at_once_do_not_double(shop: Database) -> None:
    add_campaigns(shop)
    with psycopg.connect(shop.dsn) as first, ThreadPoolExecutor() as threads:
        assert first.execute("select launch_campaigns()").fetchone() == (2,)
        second = threads.submit(query, shop, "select launch_campaigns() as count")
        deadline = time.monotonic() + PATIENCE
        while not query(shop, "select from pg_stat_activity where wait_event_type = 'Lock'"):
            assert time.monotonic() < deadline
        first.commit()
        assert second.result(PATIENCE) == [{"count": 0}]
    assert pushes(shop) == {(ANN, "Spring"), (BOB, "Spring")}


def test_a_run_that_fails_launches_nothing(shop: Database) -> None:
    add_campaigns(shop)
    with psycopg.connect(shop.dsn) as owner:
        owner.execute("select launch_campaigns()")
        owner.rollback()
    assert pushes(shop) == set()
    assert query(shop, "select launch_campaigns() as count") == [{"count": 2}]
