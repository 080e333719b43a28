"""Rows that are refused otherwise than by a trigger: they fail until the service withstands them.

Each docstring says what a user sees, and what would be right.
"""

from __future__ import annotations

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
