"""Faults of the client that need a database to be seen."""

from __future__ import annotations

import asyncio
import gc

import psycopg
import pytest
from psycopg import AsyncRawCursor

from listener.client import (
    BatchResponse,
    ClientError,
    Direct,
    NotFound,
    Notification,
    Push,
    PushClient,
    enqueue,
)
from tests.support.client import Way
from tests.support.postgres import Database
from tests.support.service import Rows

PUSH = Push(token="phone", notification=Notification("t"))


def test_an_event_loop_that_has_ended_leaves_no_connection(database: Database) -> None:
    """Django's ``async_to_sync`` and Celery tasks make a loop for each call; the client lives as long as they do."""
    client = PushClient(Direct(database.dsn))
    for _ in range(6):
        asyncio.run(client.enqueue(PUSH))
    gc.collect()
    with psycopg.connect(database.dsn) as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            " and backend_type = 'client backend'"
        ).fetchone()
    assert row is not None
    assert row[0] <= 1


async def test_a_connection_with_raw_cursors(database: Database) -> None:
    async with (
        await psycopg.AsyncConnection.connect(database.dsn, cursor_factory=AsyncRawCursor) as conn,
        PushClient(Direct(database.dsn)) as client,
    ):
        await client.enqueue(PUSH, conn=conn)


async def test_get_of_another_users_push_is_not_found(entry: Way, rows: Rows) -> None:
    """``PushClient.get``: "Raises NotFound if there is none, or if it is another user's"."""
    from uuid import uuid4

    async with PushClient(entry.user(uuid4())) as client:
        with pytest.raises(NotFound):
            await client.get(uuid4())


def test_enqueue_by_columns_takes_an_installation_id(database: Database) -> None:
    with psycopg.connect(database.dsn) as conn:
        enqueue(conn, fid="dTnB3Zx8QhGkPq1WvYcR0s", title="t")  # type: ignore[call-arg]


async def test_each_form_of_a_user_id_is_taken_by_both_calls(entry: Way) -> None:
    push = Push(user_id="a000000000004000800000000000000a", notification=Notification("t"))
    async with PushClient(entry.service()) as client:
        await client.enqueue(push)
        (await client.enqueue_each([push])).raise_for_failures()


async def test_a_number_as_a_key_is_treated_alike_by_every_call(entry: Way) -> None:
    """An order's id as idempotency_key: Direct.enqueue says "run migrate", Rest takes it, enqueue_each refuses it."""
    said: list[str] = []
    async with PushClient(entry.service()) as client:
        for number, call in enumerate((client.enqueue, lambda each: client.enqueue_each([each]))):
            push = Push(topic="a", data={"a": "b"}, idempotency_key=number)  # type: ignore[arg-type]
            try:
                answer = await call(push)
                ok = not isinstance(answer, BatchResponse) or answer.failure_count == 0
                said.append("taken" if ok else "InvalidArgument")
            except ClientError as error:
                said.append(type(error).__name__)
    assert said in (["taken"] * 2, ["InvalidArgument"] * 2)
