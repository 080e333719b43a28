"""Applies the migrations and functions that are missing or have changed, and says beforehand what that would do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from listener.schema import exposure
from listener.schema.exposure import Way
from listener.schema.migrate import ledger, privileges, structure
from listener.schema.migrate.disk import Function, Migration, MigrationError, load
from listener.schema.migrate.ledger import LEDGER, Connection, FunctionState, Standing, State
from listener.schema.migrate.session import (
    PATIENCE,
    Patience,
    alone,
    connect,
    in_transaction,
    named,
    run,
    set_parameters,
    turn,
    waits_told,
)
from listener.schema.migrate.structure import Damage, Kind

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))

_LAST_THAT_WARNS = "adoption"
"""The migrations up to this one look at the database and warn. They change no table of the application."""


def status(dsn: str, migrations: list[Migration] | None = None) -> list[State]:
    """Which migrations have been applied to the database, and which have not; changes nothing."""
    with connect(dsn) as conn:
        return ledger.migration_states(conn, load() if migrations is None else migrations)


def function_status(dsn: str, migrations: list[Migration] | None = None) -> list[FunctionState]:
    """Which functions are the same as their files, and which are not; changes nothing."""
    with connect(dsn) as conn:
        return ledger.function_states(conn, load() if migrations is None else migrations)


def foresee(dsn: str, *, expire_older_than: timedelta | None = timedelta(days=1)) -> list[str]:
    """The warnings with which ``apply`` would begin: what becomes of waiting rows, and what a person should look at.

    Changes nothing. Empty after the tables were adopted. Raises MigrationError, as ``apply`` would, if the database
    cannot be adopted.
    """
    warnings: list[str] = []
    known = load()
    last = next(migration.version for migration in known if migration.name == _LAST_THAT_WARNS)
    with connect(dsn, warnings.append) as conn:
        set_parameters(conn, expire_older_than=_interval(expire_older_than))
        with conn.transaction(force_rollback=True):
            for state in ledger.migration_states(conn, known)[:last]:
                if state.applied_at is None:
                    with named(state.migration):
                        conn.execute(_script(state.migration).encode())
    return warnings


def damages(dsn: str, migrations: list[Migration] | None = None) -> list[Damage]:
    """The objects of ``apply`` that somebody has dropped, disabled or replaced; changes nothing."""
    with connect(dsn) as conn:
        return _damages(conn, ledger.migration_states(conn, load() if migrations is None else migrations))


def _damages(conn: Connection, states: list[State]) -> list[Damage]:
    applied = [state.migration for state in states if state.applied_at is not None]
    if not applied:
        return []
    facts = [tuple(map(str, row)) for row in conn.execute(structure.FACTS).fetchall()]
    return structure.find(facts, applied)


def apply(
    dsn: str,
    migrations: list[Migration] | None = None,
    *,
    expire_older_than: timedelta | None = timedelta(days=1),
    share_new_columns: bool = False,
    patience: Patience = PATIENCE,
    report: Callable[[Migration], None] = lambda _: None,
    replaced: Callable[[Function], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> list[Migration]:
    """Applies the missing migrations, calling ``report`` after each; returns those that it has applied.

    Before that, it creates again the functions, triggers, indexes and views that somebody has dropped, disabled or
    replaced. After that, it replaces the functions that have changed, calling ``replaced`` for each, and restores the
    privileges that have changed. ``warn`` is told of all this. ``warn`` is also told which functions a newer
    push-listener has applied; these stay as they are.

    ``expire_older_than`` is for adopting a queue: rows that have been waiting for longer expire, and are not sent.
    None: all are sent. ``share_new_columns``: users who could read every column of an adopted table may also read the
    columns that push-listener adds. ``warn`` also gets the notices of the database.

    Raises MigrationError if the file of an applied migration has changed, if the database holds a migration that this
    version does not know, if the database cannot be adopted, if tables or columns of an earlier call are missing, or
    if a step fails. The steps before a failing step stay applied. The failing step leaves nothing behind.
    """
    known = load() if migrations is None else migrations
    done = []
    with connect(dsn, warn) as conn, turn(conn, warn, patience=patience):
        set_parameters(conn, in_batches="on", expire_older_than=_interval(expire_older_than))
        states = ledger.migration_states(conn, known)
        ledger.refuse_changed(states)
        _mend(dsn, conn, _damages(conn, states), warn, patience)
        for state in states:
            if state.applied_at is None:
                with waits_told(dsn, conn, warn, patience.note):
                    run(
                        conn,
                        state.migration,
                        _script(state.migration),
                        ledger.record(state.migration),
                        patience,
                    )
                report(state.migration)
                done.append(state.migration)
        changed = _replace_functions(conn, known, warn)
        for function in changed:
            replaced(function)
        if share_new_columns:
            conn.execute("select push_listener.share_new_columns()")
        if changed or share_new_columns or not done or not privileges.are_set_by(done[-1]):
            for finding in privileges.apply_privileges(conn):
                warn(f"privileges had changed, and are set again: {finding}")
        if done or changed:
            # PostgREST caches the schema, and must read it again. Source: PostgREST, Schema Cache.
            conn.execute("notify pgrst, 'reload schema'")
    return done


def _mend(
    dsn: str, conn: Connection, found: list[Damage], warn: Callable[[str], None], patience: Patience
) -> None:
    if any(damage.kind in structure.NEEDED for damage in found):
        listed = "".join(f"\n- {line}" for line in structure.lines(found))
        raise MigrationError(
            f"what push-listener has made is no longer there, and nothing has been changed:{listed}\n"
            f"Remedy: {structure.remedy(found)}"
        )

    def work() -> None:
        for damage in found:
            if damage.function is not None:
                conn.execute(damage.function.region().encode())
            elif damage.kind is Kind.TRIGGER:
                name, _, table = damage.name.partition(" on ")
                conn.execute(
                    (damage.statement or "")
                    .replace("create trigger", "create or replace trigger", 1)
                    .encode()
                )
                conn.execute(f"alter table {table} enable trigger {name}".encode())
            elif damage.kind is not Kind.INDEX:
                conn.execute((damage.statement or "").encode())

    if found:
        with named("what was dropped or changed"):
            in_transaction(conn, work, patience)
            for damage in found:
                if damage.kind is Kind.INDEX:
                    with waits_told(dsn, conn, warn, patience.note):
                        alone(conn, damage.statement or "")
        for line in structure.lines(found):
            warn(f"{line}, and has been made again")


def _script(migration: Migration) -> str:
    return LEDGER + migration.up if migration.version == 1 else migration.up


def _replace_functions(
    conn: Connection, known: list[Migration], warn: Callable[[str], None]
) -> list[Function]:
    """Replaces the functions that have changed, all in one transaction, and returns them."""
    states = ledger.function_states(conn, known)
    for state in states:
        if state.standing is Standing.NEWER:
            warn(
                f"the function {state.function.name} in the database has revision {state.applied_revision}, and this "
                f"version of push-listener has revision {state.function.revision}: it is left as it is"
            )
    changed = [state.function for state in states if state.standing is Standing.CHANGED]
    if changed:
        script = "\n".join(function.region() for function in changed)
        run(conn, "functions", script, map(ledger.record_function, changed))
    with conn.transaction():
        for state in states:
            if state.standing is Standing.CURRENT and state.applied_revision != state.function.revision:
                conn.execute(*ledger.record_function(state.function))
    return changed


def drift(dsn: str) -> list[str]:
    """What differs from the privileges, policies and settings that ``apply`` sets; changes nothing."""
    with connect(dsn) as conn:
        return privileges.find_drift(conn)


def exposures(dsn: str) -> list[Way]:
    """Who can cause, change or read a push in this database; changes nothing."""
    with connect(dsn) as conn:
        return exposure.find(conn)


def _interval(age: timedelta | None) -> str:
    """The age in the form that push_listener.expire_older_than takes and a person can read."""
    if age is None:
        return "never"
    seconds = round(age.total_seconds())
    size, unit = next((n, u) for n, u in _UNITS if seconds % n == 0)
    return f"{seconds // size} {unit}{'' if seconds == size else 's'}"
