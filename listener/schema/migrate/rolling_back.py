"""Rolls migrations back, the newest first, all in one transaction: if any step fails, nothing has been changed.

A rollback file that begins with ``-- migrate: loses QUERY`` drops data that cannot be restored. The query returns, in
words, what would be lost. Every such query is run before the first step, and again when the tables are locked.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import psycopg

from listener.postgres.locks import LIVENESS_CLASS, ROLLBACK_LOCK
from listener.schema.migrate import ledger
from listener.schema.migrate.disk import Migration, MigrationError, load
from listener.schema.migrate.ledger import Connection
from listener.schema.migrate.session import (
    APPLICATION_NAME,
    connect,
    execute,
    explained,
    in_transaction,
    named,
    set_parameters,
    turn,
)

_LOSES = re.compile(r"-- migrate: loses (\S.*)")

# The sessions that work on the queue. A worker that listens holds its liveness lock. A worker that sweeps has only its
# sessions. Behind a pooler these sessions may outlive the worker, so they do not count if every worker has signed off.
_IN_USE = """
select w.id, coalesce(w.name, s.application_name), s.pid
  from pg_catalog.pg_stat_activity s
  left join (
    pg_catalog.pg_locks l
    join push_listener.workers w on w.id = l.objid::bigint and w.stopped_at is null
  ) on l.pid = s.pid and l.locktype = 'advisory' and l.classid = %(liveness)s and l.objsubid = 2 and l.granted
  where s.datname = pg_catalog.current_database() and s.pid <> pg_catalog.pg_backend_pid()
    and (w.id is not null
         or s.application_name = 'push-listener' and exists (
              select from push_listener.workers where stopped_at is null or lost)
         or s.application_name like 'push-listener %%' and s.application_name <> %(migrate)s)
  order by w.id, s.pid
"""

# Rows claimed by workers without a liveness lock: those that call fetch_pending_pushes, and those that sweep and have
# not signed off.
_LEASED = """
select count(*), max(p.next_attempt_at)::text
  from public.push_notifications p
  where p.status = 'processing' and p.next_attempt_at > now() and p.next_attempt_at < 'infinity'
    and (p.claimed_by is null and p.delivery_attempts > 0
         or exists (
              select from push_listener.workers w
                where w.id = p.claimed_by and w.stopped_at is null and not w.guarded))
"""

# Locks the tables, so that nobody can add, claim or delete rows between the checks and the steps.
_LOCK_TABLES = """
do $$
declare
  v_table regclass;
begin
  for v_table in
    select c.oid::regclass from pg_class c
      where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
        and c.relname in ('push_notifications', 'push_delivery_logs', 'push_devices', 'telemetry_logs')
      order by c.relname desc
  loop
    execute format('lock table %s in access exclusive mode', v_table);
  end loop;
end
$$
"""


def rollback(
    dsn: str,
    to: int,
    migrations: list[Migration] | None = None,
    *,
    discard_data: bool = False,
    keep_tables: bool = False,
    report: Callable[[Migration], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> list[Migration]:
    """Rolls back every applied migration above version ``to`` (0: all), newest first; returns them.

    An adopted table gets its old shape back. With ``keep_tables``, a table that push-listener created stays as it is,
    and the next ``apply`` adopts it. Only ``discard_data`` allows two things: to drop a table that push-listener
    created and that holds rows, and to delete rows that an adopted table could not hold before. The functions that
    remain keep the text of this version. The next ``apply``, of any version, replaces those that differ from its own.

    Raises MigrationError, having changed nothing, if ``to`` is above the newest migration, if data would be lost, if a
    worker lives or has claimed rows, or if a step fails.
    """
    known = load() if migrations is None else migrations
    newest = max((migration.version for migration in known), default=0)
    if to > newest:  # probably a mistake: nobody calls this to change nothing
        raise MigrationError(f"there is no migration {to:04d}: the newest is {newest:04d}")
    # A worker that starts takes the second lock for a moment. So from here on, the checks below see the worker, or it
    # cannot start.
    with connect(dsn, warn) as conn, turn(conn, warn), turn(conn, warn, ROLLBACK_LOCK):
        set_parameters(
            conn,
            discard_data="on" if discard_data else "off",
            keep_tables="on" if keep_tables else "off",
        )
        applied = [s.migration for s in ledger.migration_states(conn, known) if s.applied_at is not None]
        steps = [migration for migration in reversed(applied) if migration.version > to]

        def refuse() -> None:
            _refuse_while_in_use(conn)
            if not discard_data:
                _refuse_losses(conn, steps)

        def take_back() -> None:
            conn.execute(_LOCK_TABLES)
            refuse()
            for migration in steps:
                with explained(migration):
                    conn.execute(migration.down.encode())
                    execute(conn, ledger.forget(migration))
            conn.execute("notify pgrst, 'reload schema'")

        if steps:
            refuse()  # it reads whole tables, so it runs once before the tables are locked
            with named("the way back"):
                in_transaction(conn, take_back)
        for migration in steps:
            report(migration)
    return steps


def refuse_while_in_use(dsn: str) -> None:
    """Raises MigrationError if a worker lives, or has claimed rows that it may be sending."""
    with connect(dsn) as conn:
        _refuse_while_in_use(conn)


def _refuse_while_in_use(conn: Connection) -> None:
    there = conn.execute(
        "select to_regclass('push_listener.workers') is not null "
        "and to_regclass('public.push_notifications') is not null"
    ).fetchone()
    if there is None or not there[0]:
        return
    users = conn.execute(_IN_USE, {"liveness": LIVENESS_CLASS, "migrate": APPLICATION_NAME}).fetchall()
    if users:
        named = "; ".join(
            f"{name} (pid {pid})" if worker is None else f"worker {worker}, {name} (pid {pid})"
            for worker, name, pid in users
        )
        raise MigrationError(
            f"push-listener is at work on this database: {named}. Stop it wherever it runs, then run this again. "
            "If none runs any more, a pooler keeps the session: select pg_terminate_backend(pid) ends it"
        )
    try:
        with conn.transaction():
            leased = conn.execute(_LEASED).fetchone()
    except psycopg.errors.UndefinedColumn:
        return  # the application has created the table again, and nobody has claimed rows in it
    if leased is not None and leased[0]:
        raise MigrationError(
            f"{leased[0]} pushes are in the hands of a worker, and may be on their way: it took them with "
            "fetch_pending_pushes, or it sweeps (WAKEUP=sweep) and has not signed off. Stop it, and run this again "
            f"when the last lease has ended, at {leased[1]}"
        )


def _refuse_losses(conn: Connection, steps: list[Migration]) -> None:
    losses: list[str] = []
    for migration in steps:
        if match := _LOSES.match(migration.down):
            with explained(migration):
                losses += [str(row[0]) for row in conn.execute(match[1].encode())]
    if losses:
        raise MigrationError(
            "the way back would lose what cannot be had again, and nothing has been changed:"
            + "".join(f"\n- {loss}" for loss in reversed(losses))
            + "\nComplete or save it, then roll back with --discard-data, which deletes it."
        )
