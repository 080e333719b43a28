"""examples/sql: what a user's own change may cause, and a broadcast in one statement."""

from __future__ import annotations

import json
from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from listener.emulator import Emulator
from listener.service import Service
from tests.support.examples import ANN, BOB, EVE, example_sql
from tests.support.postgres import Database
from tests.support.service import Rows


def signed_in(database: Database, user: UUID) -> psycopg.Connection:
    """A connection as PostgREST makes it for a user."""
    claims = json.dumps({"role": "authenticated", "sub": str(user)}, separators=(",", ":"))
    dsn = make_conninfo(
        database.dsn_as("authenticator"), options=f"-c role=authenticated -c request.jwt.claims={claims}"
    )
    return psycopg.connect(dsn, autocommit=True)


@pytest.fixture
def courier(database: Database) -> Iterator[psycopg.Connection]:
    """Bob, who has Ann's order."""
    with psycopg.connect(database.dsn) as owner:
        owner.execute(example_sql("orders.sql"))
        owner.execute(example_sql("order_status.sql"))
        owner.execute("insert into couriers values (%s), (%s)", (BOB, EVE))
        owner.execute("insert into orders (customer_id, courier_id) values (%s, %s)", (ANN, BOB))
        owner.execute("insert into orders (customer_id, courier_id) values (%s, %s)", (BOB, EVE))
    with signed_in(database, BOB) as conn:
        yield conn


async def test_a_change_of_the_status_becomes_a_push(courier: psycopg.Connection, rows: Rows) -> None:
    courier.execute("update orders set status = 'on the way'")
    (row,) = (await rows.all()).values()
    assert (row["user_id"], row["title"], row["priority"]) == (ANN, "Your order is on the way", "high")
    assert row["data"] == {"order": "1", "status": "on the way"}
    # The same again, and back and forth: no second push.
    courier.execute("update orders set status = 'on the way'")
    courier.execute("update orders set status = 'cooking'")
    courier.execute("update orders set status = 'on the way'")
    assert len(await rows.all()) == 1
    courier.execute("update orders set status = 'delivered'")
    assert [row["title"] for row in (await rows.all()).values()][1:] == ["Your order has arrived"]


async def test_a_change_that_is_rolled_back_leaves_no_push(courier: psycopg.Connection, rows: Rows) -> None:
    with courier.transaction(force_rollback=True):
        courier.execute("update orders set status = 'on the way'")
    assert await rows.all() == {}


@pytest.mark.parametrize(
    "attempt",
    [
        "select enqueue_push(p_topic => 'all', p_title => 'Win a car')",
        'select * from enqueue_pushes(array[\'{"topic": "all", "title": "Win a car"}\'::jsonb])',
        "insert into push_notifications (topic, title) values ('all', 'Win a car')",
        "update orders set customer_id = '" + str(EVE) + "'",
        "update orders set courier_id = '" + str(EVE) + "'",
        "insert into orders (customer_id, courier_id) values ('" + str(EVE) + "', '" + str(BOB) + "')",
        "select tell_customer()",
        "create trigger t after update on orders for each row execute function tell_customer()",
        "select * from couriers",
    ],
)
async def test_a_courier_can_cause_no_other_push(
    courier: psycopg.Connection, rows: Rows, attempt: str
) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        courier.execute(attempt.encode())
    assert await rows.all() == {}


async def test_objects_of_the_couriers_own_are_not_taken_for_those_of_the_shop(
    courier: psycopg.Connection, rows: Rows
) -> None:
    courier.execute("create temporary table push_notifications (id uuid)")
    courier.execute(
        "create function pg_temp.now() returns timestamptz language sql as $$ select 'infinity'::timestamptz $$"
    )
    courier.execute("set search_path = pg_temp, public")
    courier.execute("update orders set status = 'ready'")
    (row,) = (await rows.all()).values()
    assert row["user_id"] == ANN
    assert row["expires_at"].year < 9999


async def test_a_courier_reaches_the_couriers_own_orders_alone(
    courier: psycopg.Connection, database: Database, rows: Rows
) -> None:
    assert courier.execute("update orders set status = 'ready' where id = 2").rowcount == 0
    with signed_in(database, ANN) as customer:
        assert customer.execute("update orders set status = 'ready'").rowcount == 0
    assert await rows.all() == {}


async def test_a_broadcast_reaches_each_device_once(service: Service, emulator: Emulator, rows: Rows) -> None:
    await rows.query(
        "create table profiles (id uuid primary key default gen_random_uuid(), wants_news boolean);"
        "insert into profiles (wants_news) select n % 10 > 0 from generate_series(1, 200) n;"
        "insert into push_devices (token, user_id, platform) select 'phone-' || id, id, 'android' from profiles"
    )
    await rows.connection.execute(example_sql("broadcast.sql"))
    repeated = await rows.connection.execute(example_sql("broadcast.sql"))
    assert repeated.rowcount == 0
    received = await emulator.wait_accepted(180)
    await rows.over()
    wanted = {
        row["token"]
        for row in await rows.query("select 'phone-' || id as token from profiles where wants_news")
    }
    assert {each.message and each.message["token"] for each in received} == wanted
    assert len(emulator.received) == 180
