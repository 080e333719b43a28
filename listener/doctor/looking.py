"""The connection of most checks. Each check runs in a transaction, and its settings end with the transaction.

Behind a pooler in transaction mode, a setting of the session would remain, and another client would get it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg.rows import class_row, scalar_row

from listener.postgres.connect import ENCODING, with_defaults

APPLICATION_NAME = "push-listener doctor"

Connection = psycopg.Connection[Any]
T = TypeVar("T")

# The search_path makes Postgres look up names without a schema in pg_catalog only, so that no function of somebody else
# runs here. jit is off, because compiling a statement on the catalogue takes longer than running it.
_SETTINGS: LiteralString = """
select pg_catalog.set_config(s.name, v.value, true)
  from (values
    ('search_path', 'pg_catalog, pg_temp'), ('statement_timeout', %(milliseconds)s::text),
    ('lock_timeout', %(milliseconds)s::text), ('datestyle', 'ISO, MDY'), ('intervalstyle', 'postgres'), ('jit', 'off')
  ) as v(name, value)
  join pg_catalog.pg_settings s on pg_catalog.lower(s.name) = v.name
"""

_OF_LIMIT = 0.8
"""The fraction of a check's time after which Postgres cancels the statement, so that its own error arrives in time."""


def connect(dsn: str, seconds: float) -> Connection:
    """A connection in autocommit. Raises psycopg.OperationalError."""
    return psycopg.connect(
        with_defaults(dsn),
        autocommit=True,
        application_name=APPLICATION_NAME,
        connect_timeout=max(2, round(seconds)),  # libpq takes at least 2
        prepare_threshold=None,
        client_encoding=ENCODING,
    )


@contextmanager
def looking(conn: Connection, seconds: float) -> Iterator[Connection]:
    """A transaction in which one check looks at the database. It is always rolled back."""
    with conn.transaction(force_rollback=True):
        conn.execute(_SETTINGS, {"milliseconds": round(seconds * _OF_LIMIT * 1000)})
        yield conn


def value(conn: Connection, statement: LiteralString) -> Any:
    """The first column of the first row; None if there is no row."""
    return conn.cursor(row_factory=scalar_row).execute(statement).fetchone()


def values(conn: Connection, statement: LiteralString) -> list[Any]:
    """The first column of all rows."""
    return conn.cursor(row_factory=scalar_row).execute(statement).fetchall()


def records(conn: Connection, record: type[T], statement: LiteralString, **given: object) -> list[T]:
    """The rows, as records with fields named like the columns."""
    return conn.cursor(row_factory=class_row(record)).execute(statement, given or None).fetchall()


def record(conn: Connection, kind: type[T], statement: LiteralString, **given: object) -> T:
    """The only row."""
    (found,) = records(conn, kind, statement, **given)
    return found
