"""The blocks of SQL of a page, executed in their order. Other tests have those of migrating and runbooks."""

from __future__ import annotations

import json
import re
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.support.documents import sql_blocks
from tests.support.examples import ANN, BOB
from tests.support.postgres import Database

BEFORE = {
    "docs/adoption.md": "create table profiles (id uuid primary key, fcm_token text)",
    "docs/privileges.md": "create table profiles (id uuid primary key, fcm_token text); "
    "alter table profiles enable row level security",
    "docs/sql.md": "create table orders (customer_id uuid, courier_id uuid, open boolean)",
}
"""What the application of the reader has, page by page."""


def _run(conn: psycopg.Connection, page: str, database: str) -> None:
    """Executes the blocks; a name that stands for one of the reader's becomes one that is there."""
    conn.execute(BEFORE.get(page, "select").encode())
    for block in sql_blocks(page):
        statement = re.sub(r"\bdatabase other\b", f'database "{database}"', block).replace(
            "to ...;", "to push_listener;"
        )
        conn.execute(statement.replace("<registration token>", "a-phone").encode())


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/adoption.md",
        "docs/deploy-docker.md",
        "docs/privileges.md",
        "docs/restore.md",
        "docs/sql.md",
    ],
)
def test_the_blocks_run_in_their_order(database: Database, page: str) -> None:
    assert sql_blocks(page)
    with psycopg.connect(database.dsn) as conn:
        _run(conn, page, conn.info.dbname)
        conn.rollback()  # roles belong to the whole server


def _as(database: Database, user: UUID) -> psycopg.Connection:
    claims = json.dumps({"role": "authenticated", "sub": str(user)}, separators=(",", ":"))
    dsn = make_conninfo(
        database.dsn_as("authenticator"), options=f"-c role=authenticated -c request.jwt.claims={claims}"
    )
    return psycopg.connect(dsn, autocommit=True)


def test_the_pattern_of_the_readme_lets_a_user_cause_this_push_and_no_other(database: Database) -> None:
    with psycopg.connect(database.dsn) as owner:
        _run(owner, "README.md", owner.info.dbname)
        owner.execute("delete from push_notifications")
    with _as(database, ANN) as ann:
        ann.execute("insert into messages (sender, recipient, body) values (%s, %s, 'Hello')", (ANN, BOB))
        for refused in (
            "insert into push_notifications (device_token, title) values ('a-phone', 'Hello')",
            "select enqueue_push(p_topic => 'news', p_title => 'Hello')",
            "select tell_recipient()",
            f"insert into messages (sender, recipient, body) values ('{BOB}', '{ANN}', 'In the name of Bob')",
            "insert into messages (id, sender, recipient, body) overriding system value "
            f"values (7, '{ANN}', '{BOB}', 'With a number of her own')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                ann.execute(refused.encode())
        assert ann.execute("select body from messages").fetchall() == [("Hello",)]
    with _as(database, BOB) as bob:
        assert bob.execute("select body from messages").fetchall() == [("Hello",)]
    with _as(database, UUID(int=3)) as neither:
        assert neither.execute("select body from messages").fetchall() == []
    with psycopg.connect(database.dsn) as owner:
        rows = owner.execute(
            "select user_id, title, body, idempotency_key from push_notifications"
        ).fetchall()
    assert rows == [(BOB, "You have a message", "Hello", "message-1")]


def test_a_user_can_be_tried_in_sql(database: Database) -> None:
    (block,) = sql_blocks("docs/local.md")
    with psycopg.connect(database.dsn) as owner:
        _run(owner, "README.md", owner.info.dbname)
        owner.execute("delete from push_notifications")
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        owner.execute(block.encode())
        messages = owner.execute("select sender, recipient, body from messages").fetchall()
        pushes = owner.execute("select user_id from push_notifications").fetchall()
    assert (messages, pushes) == ([(ANN, BOB, "Hello")], [(BOB,)])
