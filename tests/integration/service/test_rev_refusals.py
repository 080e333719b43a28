"""Rows that are refused otherwise than by a trigger: they fail until the service withstands them.

Each docstring says what a user sees, and what would be right.
"""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from listener.emulator import Emulator
from listener.postgres.errors import Condition
from tests.support.postgres import Database, Server
from tests.support.service import Rows, rows_of, serving, settings_for, until

pytestmark = pytest.mark.newest_postgres


def tokens(emulator: Emulator) -> list[str]:
    """The registration tokens for which FCM has accepted a push, in order."""
    return [str(one.message["token"]) for one in emulator.accepted if one.message]


async def test_a_user_whose_recipients_cannot_be_read_keeps_no_neighbour(
    database: Database, rows: Rows
) -> None:
    """The application's push_recipients raises an error for one user (a cast, a decryption), who has 60 pushes in line.

    Seen: of 300 neighbours none is sent in 60 s. The search for rows that cannot be claimed only updates them and
    does not read what a claim reads, so it finds none; each bad row costs ten claims and ten searches, about a
    second, and is back after ten. An urgent push waits for one such row, 1.3 s. Times grow with the rows in line.
    Right: such rows are found many at a time, as those that a trigger refuses.
    """
    user = uuid4()
    await rows.device("bad", user)
    await rows.query("""
        create or replace view push_recipients with (security_invoker = true) as
          select user_id, case token when 'bad' then (1 / (length(token) - 3))::text else token end as token, platform
            from push_devices where disabled_at is null
    """)
    await rows.query(
        "insert into push_notifications (user_id, title) select %(user)s, 't' from generate_series(1, 60)",
        user=user,
    )
    await rows.add_many(300)
    neighbour = await rows.add(device_token="neighbour", title="t")
    async with Emulator() as emulator, serving(settings_for(database.dsn, emulator)):
        await rows.one_over(neighbour)


async def test_texts_that_are_not_utf8_keep_no_neighbour(postgres: Server, emulator: Emulator) -> None:
    """A database in SQL_ASCII has 100 pushes in line whose title is LATIN1.

    Seen: nothing is sent in 30 s: one such row at a time is given up, after ten claims and ten searches that find
    nothing. docs/guarantees.md: "and the others go on".
    Right: they are found many at a time.
    """
    with postgres.encoded("SQL_ASCII") as database:
        async with rows_of(database.dsn) as rows:
            await rows.query(
                r"insert into push_notifications (device_token, title) "
                r"select 'bad-' || n, convert_from('\xfc'::bytea, 'SQL_ASCII') from generate_series(1, 100) n"
            )
            await rows.add_many(300)
            neighbour = await rows.add(device_token="neighbour", title="t")
            async with serving(settings_for(database.dsn, emulator)):
                await rows.one_over(neighbour)


async def test_a_unique_index_on_processing_rows_keeps_no_neighbour(database: Database, rows: Rows) -> None:
    """The application lets each user have one push in 'processing' at a time, by a unique index; 60 users have three.

    Seen: a batch with two rows of one user is refused, and no row of it is refused alone. So each claim is halved
    down to one row, about three pushes a second go out, and a neighbour behind 20 such users waits for 19 s. A row
    whose sibling was in flight for 50 ms is passed over for 10 s, then 20 s, and up to a day, as if it never fitted.
    Right: of rows that refuse each other one is claimed in each batch, and the others follow as soon as it is
    settled.
    """
    await rows.query(
        "create unique index one_at_a_time on push_notifications (user_id) where status = 'processing'"
    )
    await rows.query("""
        insert into push_notifications (user_id, device_token, title)
          select u.id, 'phone-' || u.n || '-' || m, 't'
            from (select n, gen_random_uuid() as id from generate_series(1, 60) n) u, generate_series(1, 3) m
            order by u.n, m
    """)
    neighbour = await rows.add(device_token="neighbour", title="t")
    async with Emulator() as emulator, serving(settings_for(database.dsn, emulator)):
        await rows.one_over(neighbour)


async def test_a_guard_against_large_updates_is_learnt(database: Database, rows: Rows) -> None:
    """A statement trigger of the application raises an error when more than 50 rows are updated at once.

    Seen: 14 pushes a second instead of hundreds, for as long as there is a backlog; /readyz ok. Each claim begins
    with 500 rows again, and is halved four times, with half a second of searching each time. Only timeouts are
    remembered.
    Right: a size at which no row was to blame is remembered as one that timed out is.
    """
    await rows.query("""
        create function guard() returns trigger language plpgsql as $$ begin
          if (select count(*) from changed) > 50 then raise 'too many rows at once'; end if;
          return null;
        end $$;
        create trigger guard after update on push_notifications referencing new table as changed
          for each statement execute function guard();
    """)
    for _ in range(40):
        await rows.add_many(50)
    async with Emulator() as emulator, serving(settings_for(database.dsn, emulator)):
        await rows.over(patience=60)


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


@pytest.mark.parametrize(
    "statement",
    [
        "create rule audit as on update to push_notifications do also select 1",
        "create trigger guard before update on push_notifications for each statement execute function guard()",
    ],
    ids=["rule", "statement trigger"],
)
async def test_a_reachable_database_is_not_called_unreachable(
    database: Database, rows: Rows, statement: str
) -> None:
    """A rule on push_notifications, or a statement trigger that raises, refuses every claim, also one of no rows.

    Seen: /readyz says "the database cannot be reached"; the log says "SQLSTATE 0A000", or P0001, and neither what
    refuses nor where.
    Right: /readyz says that the database refuses what push-listener writes; migrate and run name the rule.
    """
    await rows.query(
        "create function guard() returns trigger language plpgsql as $$ begin raise 'closed'; end $$"
    )
    async with Emulator() as emulator, serving(settings_for(database.dsn, emulator)) as service:
        await rows.connection.execute(statement.encode())
        await rows.add(device_token="phone", title="t")
        await until(service.obstacles)
        found = service.obstacles()
        await rows.query("drop rule if exists audit on push_notifications")
        await rows.query("drop trigger if exists guard on push_notifications")
    assert str(Condition.AWAY) not in found


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


@pytest.mark.parametrize(
    ("take", "give"),
    [
        (
            "revoke update (claimed_by) on push_notifications from push_listener",
            "grant update (claimed_by) on push_notifications to push_listener",
        ),
        (
            "alter table push_notifications rename column updated_at to changed_at",
            "alter table push_notifications rename column changed_at to updated_at",
        ),
    ],
    ids=["privilege", "column"],
)
async def test_no_row_is_blamed_for_what_every_claim_lacks(
    database: Database, rows: Rows, take: str, give: str
) -> None:
    """A privilege on a column is revoked, or a column is renamed, while the service runs.

    Seen: the search for rows that cannot be claimed blames each row that waits, up to 2,000 at a time, for 10 s
    and more each time. docs/guarantees.md: "The statement fails without rows as well, so no row is blamed".
    Right: what fails without rows is told, before any row is looked at.
    """
    await rows.query("create role app_listener login in role push_listener")
    async with (
        Emulator() as emulator,
        serving(settings_for(database.dsn_as("app_listener"), emulator)) as service,
    ):
        await rows.connection.execute(take.encode())
        await rows.add(device_token="phone", title="t")
        await until(lambda: service.obstacles() or emulator.accepted)
        await rows.connection.execute(give.encode())
    assert await rows.query("select code from push_listener.unwritable_rows") == []
