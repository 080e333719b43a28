"""What has been applied to a database: the tables ``push_listener.migrations`` and ``push_listener.functions``.

Both hold a checksum of the file that was applied. If the file of a migration has changed since, ``migrate`` applies
nothing. If the file of a function has changed, ``migrate`` replaces the function, unless a newer push-listener has
applied a higher revision.

``migrate --down`` sets every revision to 0, so that the version of push-listener that migrates next applies its own
functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import psycopg
from psycopg.rows import args_row

from listener.schema.migrate.disk import Function, Migration, MigrationError, functions_of

Connection = psycopg.Connection[tuple[object, ...]]
Statement = tuple[str, tuple[object, ...]]
"""A statement and its values."""

LEDGER = """
create schema if not exists push_listener;
create table if not exists push_listener.migrations (
  version integer primary key,
  name text not null,
  checksum text not null,
  applied_at timestamptz not null default now()
);
create table if not exists push_listener.functions (
  name text primary key,
  revision integer not null,
  checksum text not null,
  applied_at timestamptz not null default now()
);
"""
_DROP = "drop table push_listener.functions, push_listener.migrations; drop schema push_listener"
_RECORD = "insert into push_listener.migrations (version, name, checksum) values (%s, %s, %s)"
_FORGET = "delete from push_listener.migrations where version = %s"
_RECORD_FUNCTION = """
insert into push_listener.functions as f (name, revision, checksum) values (%s, %s, %s)
  on conflict (name) do update
    set revision = excluded.revision, checksum = excluded.checksum,
        applied_at = case when f.checksum = excluded.checksum then f.applied_at else now() end
"""
_FORGET_FUNCTIONS = "delete from push_listener.functions where name = any (%s)"
_RESET_REVISIONS = "update push_listener.functions set revision = 0 where revision <> 0"


@dataclass(frozen=True, slots=True)
class State:
    """The state of one migration in one database."""

    migration: Migration
    applied_at: datetime | None
    changed: bool
    """Whether the file has changed since it was applied."""


class Standing(StrEnum):
    """How a function in a database compares to its file."""

    CURRENT = "current"
    CHANGED = "changed"
    """``apply`` replaces it."""
    NEWER = "newer"
    """A newer push-listener has applied a higher revision. ``apply`` leaves it as it is."""
    MISSING = "missing"
    """The migration that creates it has not been applied."""


@dataclass(frozen=True, slots=True)
class FunctionState:
    """The state of one function in one database."""

    function: Function
    applied_at: datetime | None
    applied_revision: int | None
    """0: ``migrate --down`` has reset it since."""
    standing: Standing


def migration_states(conn: Connection, known: list[Migration]) -> list[State]:
    """The state of each known migration. Raises MigrationError if the database holds one that this version lacks."""
    applied: dict[int, tuple[str, datetime]] = {}
    if _exists(conn, "push_listener.migrations"):
        with conn.cursor(row_factory=args_row(lambda v, c, a: (int(v), (str(c), a)))) as cursor:
            cursor.execute("select version, checksum, applied_at from push_listener.migrations")
            applied = dict(cursor)
    strangers = sorted(applied.keys() - {m.version for m in known})
    if strangers:
        raise MigrationError(
            f"the database holds migration {strangers[-1]:04d}, which this version of push-listener does not "
            "know; use the newer version. To come back to this one, stop every push-listener, and let the newer "
            f"version run: push-listener migrate --down {max((m.version for m in known), default=0)}"
        )
    states = []
    for migration in known:
        checksum, applied_at = applied.get(migration.version, (migration.checksum, None))
        states.append(State(migration, applied_at, checksum != migration.checksum))
    return states


def refuse_changed(states: list[State]) -> None:
    """Raises MigrationError when the file of an applied migration has changed."""
    changed = [s.migration for s in states if s.changed]
    if changed:
        raise MigrationError(
            f"{', '.join(map(str, changed))}: the file is not the one that was applied to this database; an applied "
            "migration is never edited, a change is a new migration"
        )


def function_states(conn: Connection, known: list[Migration]) -> list[FunctionState]:
    """Every function that these migrations include, in the order of their creation."""
    applied: dict[str, tuple[int, str, datetime]] = {}
    if _exists(conn, "push_listener.functions"):
        with conn.cursor(row_factory=args_row(lambda n, r, c, a: (str(n), (int(r), str(c), a)))) as cursor:
            cursor.execute("select name, revision, checksum, applied_at from push_listener.functions")
            applied = dict(cursor)
    states = []
    for function in functions_of(known):
        if function.name not in applied:
            states.append(FunctionState(function, None, None, Standing.MISSING))
            continue
        revision, checksum, applied_at = applied[function.name]
        standing = Standing.CURRENT
        if checksum != function.checksum:
            standing = Standing.NEWER if revision > function.revision else Standing.CHANGED
        states.append(FunctionState(function, applied_at, revision, standing))
    return states


def record(migration: Migration) -> Iterator[Statement]:
    """Records a migration and its functions."""
    yield _RECORD, (migration.version, migration.name, migration.checksum)
    for function in migration.functions:
        yield record_function(function)


def record_function(function: Function) -> Statement:
    """Records a function that has been created or replaced."""
    return _RECORD_FUNCTION, (function.name, function.revision, function.checksum)


def forget(migration: Migration) -> Iterator[Statement]:
    """Removes a migration and the functions that it created from the ledger. The first migration removes the ledger."""
    if migration.version == 1:
        yield _DROP, ()
    else:
        yield _FORGET, (migration.version,)
        yield _FORGET_FUNCTIONS, (list(migration.creates),)
        yield _RESET_REVISIONS, ()


def _exists(conn: Connection, table: str) -> bool:
    row = conn.execute("select to_regclass(%s) is not null", (table,)).fetchone()
    return row is not None and bool(row[0])
