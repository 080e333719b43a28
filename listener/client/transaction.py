"""Functions for a synchronous connection of psycopg, such as Django's or a script's, in the caller's transaction."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import scalar_row, tuple_row
from psycopg.types.json import Jsonb

from listener.client.direct import read_as_psycopg, statement_for, translated
from listener.client.push import Push
from listener.client.push_progress import OVER, Progress, read_progress

# The time is read as a number, because its text depends on DateStyle.
_TIME = "select extract(epoch from pg_catalog.clock_timestamp())::float8 + %s::float8"

# The row is read as JSON, for the same reason.
_PROGRESS = """
select pg_catalog.jsonb_build_object(
    'id', id, 'status', status, 'retry_count', retry_count, 'error_code', error_code, 'last_error', last_error,
    'fcm_message_id', fcm_message_id, 'created_at', created_at, 'next_attempt_at', next_attempt_at, 'sent_at', sent_at,
    'delivered_at', delivered_at)
  from public.push_notifications
  where id = %s
"""

_REQUIRED = """
select attname::text
  from pg_catalog.pg_attribute
  where attrelid = 'public.push_notifications'::regclass::oid and attname::text in ('title', 'body') and attnotnull
"""


def enqueue(
    conn: psycopg.Connection[Any],
    push: Push | None = None,
    /,
    *,
    user_id: UUID | str | None = None,
    fid: str | None = None,
    device_token: str | None = None,
    topic: str | None = None,
    condition: str | None = None,
    title: str | None = None,
    body: str | None = None,
    data: Mapping[str, Any] | None = None,
    channel: str | None = None,
    priority: str | None = None,
    image: str | None = None,
    options: Mapping[str, Any] | None = None,
    collapse_key: str | None = None,
    idempotency_key: str | None = None,
    expires_at: datetime | None = None,
    send_at: datetime | None = None,
) -> UUID:
    """Adds a push in the caller's transaction, and returns its id. It is sent after the commit, or at ``send_at``.

    If a push with this ``idempotency_key`` exists, nothing is added, and the id of that push is returned.

    A ``Push`` is added by the function ``enqueue_push``, which checks it and needs the rights of a service. Columns
    are added by an INSERT with the rights of the connection. That checks only the constraints of the table; the
    listener finds other faults when it sends the push.

    Raises:
        TypeError: the connection is asynchronous (use ``PushClient``) or not psycopg's, or both a push and columns
            are given.
        ClientError: the database has refused the ``Push``. This has failed the caller's transaction.
        psycopg.Error: the database has refused the columns. The text of the error leaves out the DETAIL, which may
            quote the row; ``diag`` has it.
    """
    if not isinstance(conn, psycopg.Connection):
        raise TypeError(
            f"conn must be a psycopg.Connection, not {type(conn).__name__}: in Django it is connection.connection, "
            "after connection.ensure_connection(); on an asynchronous one use PushClient.enqueue(push, conn=conn)"
        )
    given = {
        "user_id": user_id,
        "fid": fid,
        "device_token": device_token,
        "topic": topic,
        "condition": condition,
        "title": title,
        "body": body,
        "data": None if data is None else Jsonb(dict(data)),
        "channel": channel,
        "priority": priority,
        "image": image,
        "options": None if options is None else Jsonb(dict(options)),
        "collapse_key": collapse_key,
        "idempotency_key": idempotency_key,
        "expires_at": expires_at,
        "next_attempt_at": send_at,
        "status": "pending",  # an adopted table may have another default
    }
    values = {name: value for name, value in given.items() if value is not None}
    if push is not None:
        if len(values) > 1:
            raise TypeError("give a Push, or columns, and not both")
        return _enqueue_push(conn, push)
    try:
        return _insert(conn, values)
    except psycopg.Error as error:
        if error.sqlstate is not None:
            error.args = (translated(error).message,)
        raise


def _insert(conn: psycopg.Connection[Any], values: dict[str, Any]) -> UUID:
    if "title" not in values or "body" not in values:
        # An adopted table may require these columns. An empty text shows nothing.
        with psycopg.Cursor(conn, row_factory=scalar_row) as looks:
            values |= {name: "" for name in looks.execute(_REQUIRED) if name not in values}
    insert = sql.SQL(
        "insert into public.push_notifications ({}) values ({}) "
        "on conflict (idempotency_key) where idempotency_key is not null do nothing returning id"
    ).format(
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(map(sql.Placeholder, values)),
    )
    with psycopg.Cursor(conn, row_factory=tuple_row) as cursor:
        row = cursor.execute(insert, values).fetchone()
        if row is None:
            row = cursor.execute(
                "select id from public.push_notifications where idempotency_key::text = %s",
                (values["idempotency_key"],),
            ).fetchone()
    assert row is not None
    return UUID(str(row[0]))


def _enqueue_push(conn: psycopg.Connection[Any], push: Push) -> UUID:
    statement, values = statement_for("enqueue_push", push.arguments())
    try:
        # The cursor factory of the caller's connection may be another one, such as RawCursor with other placeholders.
        with psycopg.Cursor(conn, row_factory=scalar_row) as cursor:
            read_as_psycopg(cursor)
            return UUID(str(cursor.execute(statement, values).fetchone()))
    except psycopg.Error as error:
        problem = translated(error)
    # Raised outside the except clause, so that psycopg's error is not its context: that text may quote the row.
    raise problem


def progress(conn: psycopg.Connection[Any], push_id: UUID) -> Progress:
    """How far a push has got. Raises LookupError if the row does not exist, or psycopg.Error."""
    with psycopg.Cursor(conn, row_factory=scalar_row) as cursor:
        read_as_psycopg(cursor)
        found = cursor.execute(_PROGRESS, (push_id,)).fetchone()
    if found is None:
        raise LookupError(f"no push {push_id}")
    return read_progress(found)


def wait_for(conn: psycopg.Connection[Any], push_id: UUID, seconds: float) -> Progress:
    """Waits until a push is over, for at most ``seconds``, looking ten times a second; returns how far it has got.

    ``conn`` is in autocommit. Raises LookupError if the row does not exist, or psycopg.Error.
    """
    until = time.monotonic() + seconds
    while (now := progress(conn, push_id)).status not in OVER and time.monotonic() < until:
        time.sleep(0.1)
    return now


def database_time(conn: psycopg.Connection[Any], *, ahead: float = 0.0) -> datetime:
    """The time ``ahead`` seconds from now by the database's clock, with which ``send_at`` and ``expires_at`` are
    compared.
    """
    with psycopg.Cursor(conn, row_factory=tuple_row) as cursor:
        row = cursor.execute(_TIME, (ahead,)).fetchone()
    assert row is not None
    return datetime.fromtimestamp(float(row[0]), UTC)
