"""What a traceback of a ClientError shows."""

from __future__ import annotations

import traceback

import psycopg
import pytest

from listener.client import ClientError, Notification, Push, PushClient, enqueue
from tests.support.client import Way
from tests.support.postgres import Database
from tests.support.service import Rows

TOKEN = "a-token-that-nobody-may-read"
PUSH = Push(token=TOKEN, notification=Notification("forbidden", "a private text"))
RULE = "alter table push_notifications add constraint polite check (title <> 'forbidden')"


async def test_a_traceback_shows_neither_token_nor_payload(entry: Way, rows: Rows) -> None:
    """``logging.exception`` and Sentry write ``__cause__`` too: psycopg's DETAIL is the failing row."""
    await rows.query(RULE)
    async with PushClient(entry.service()) as client:
        with pytest.raises(ClientError) as caught:
            await client.enqueue(PUSH)
    text = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in text
    assert "a private text" not in text


async def test_nor_does_that_of_the_synchronous_call(database: Database, rows: Rows) -> None:
    await rows.query(RULE)
    with psycopg.connect(database.dsn) as conn, pytest.raises(ClientError) as caught:
        enqueue(conn, PUSH)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
