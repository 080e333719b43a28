"""What the objects for operators do to the application's rows, and what is recorded of what operators do."""

from __future__ import annotations

import random
import string

import psycopg

from listener.schema import migrate
from tests.support.access import OPERATOR, make_operator
from tests.support.postgres import Database
from tests.support.service import Rows

# Text that Postgres cannot compress below what an entry of an index may have (2,704 bytes).
LONG_CODE = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=4000))


async def test_a_push_with_a_long_code_can_be_inserted(rows: Rows) -> None:
    await rows.add(title="t", device_token="t", status="dead", error_code=LONG_CODE)


async def test_a_push_with_a_long_code_can_expire(rows: Rows) -> None:
    push = await rows.add(title="t", device_token="t", status="failed", error_code=LONG_CODE)
    await rows.query(
        "update push_notifications set status = 'expired' where id = %(id)s returning id", id=push
    )


def test_a_table_with_a_long_code_can_be_migrated(database: Database) -> None:
    migrate.rollback(database.dsn, 19)
    with psycopg.connect(database.dsn) as connection:
        connection.execute(
            "insert into push_notifications (title, device_token, status, error_code) values ('t', 't', 'dead', %s)",
            [LONG_CODE],
        )
    migrate.apply(database.dsn)


async def test_what_was_revealed_stays_recorded_when_the_operator_rolls_back(
    database: Database, rows: Rows
) -> None:
    """SECURITY.md: an operator's login cannot see a text or a token without a record that names the login."""
    make_operator(database)
    push = await rows.add(title="t", body="secret", device_token="a token")
    with psycopg.connect(database.dsn_as(OPERATOR)) as connection:
        seen = connection.execute(
            "select body, device_token from push_listener.operator_reveal(%s, 'anna')", [push]
        ).fetchone()
        connection.rollback()
    recorded = await rows.query("select login from push_listener.actions")
    assert seen is None or [row["login"] for row in recorded] == [OPERATOR]


async def test_a_push_that_changed_after_the_preview_in_a_transaction_begun_before_is_left_alone(
    database: Database, rows: Rows
) -> None:
    """docs/page.md: a push that changes later is left alone. updated_at is the begin of the transaction."""
    make_operator(database)
    push = await rows.add(title="t", device_token="t", status="pending")
    with psycopg.connect(database.dsn) as early:
        early.execute("select now()")
        frozen = (await rows.query("select clock_timestamp() as at"))[0]["at"]
        early.execute(
            "update push_notifications set status = 'dead', next_attempt_at = null, updated_at = now() where id = %s",
            [push],
        )
        early.commit()
    with psycopg.connect(database.dsn_as(OPERATOR)) as connection:
        (changed,) = connection.execute(  # type: ignore[misc]
            "select push_listener.operator_requeue(%s, %s, 'anna', 'why', null, null)", [[push], frozen]
        ).fetchone()
    assert changed == []
