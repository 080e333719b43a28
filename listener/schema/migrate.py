"""Applies db/migrations: numbered SQL files, each with its way back, each in a transaction of its own.

What was applied stands in ``push_listener.migrations``, with a checksum of the file. One process migrates
at a time (an advisory lock); the others wait and then find nothing to do.

A file that begins with ``-- migrate: concurrently`` is run statement by statement, its indexes built
concurrently. All others are short: they give up their wait for a lock soon, and try again.

A way back that begins with ``-- migrate: loses QUERY`` takes away what cannot be had again: the query returns in words
what there is of it. Every such query is run before the first step.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import tenacity
from psycopg import sql
from psycopg.rows import args_row

from listener.postgres import errors, locks
from listener.postgres.connect import is_transaction_pooler_blocking
from listener.postgres.locks import LIVENESS_CLASS, ROLLBACK_LOCK
from listener.postgres.workers import STRANGERS_SCHEMA, StrangersSchema
from listener.schema import exposure
from listener.schema.exposure import Way

Connection = psycopg.Connection[tuple[object, ...]]

LOCK_KEY = 7_308_332_045_000_001
"""Advisory lock held while migrating. Any login may take it."""

APPLICATION_NAME = "push-listener migrate"

_TURN_WAIT_S = 600.0
_TURN_NOTE_S = 5.0
_CONCURRENTLY = "-- migrate: concurrently"
_LOSES = re.compile(r"-- migrate: loses (\S.*)")
_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")

# Statements end with a semicolon, but not with one in a comment, a string or a dollar-quoted body.
_STATEMENT = re.compile(r"(?:--[^\n]*|'[^']*'|\$(\w*)\$.*?\$\1\$|[^;])+", re.DOTALL)
_COMMENTS = re.compile(r"(?:\s*--[^\n]*(?:\n|$))*")
_INDEX = re.compile(r"(create index|create unique index|drop index) if (?:not )?exists (\S+)")

LOCK_TIMEOUTS_MS = (100,) * 10 + (1500, 100, 100) * 10
"""How long to wait for a table, in ms, try after try. Whoever waits keeps everybody else from it who comes later, so
most waits are short. Some are not: an autovacuum makes way only for one who has waited for deadlock_timeout, by default
1 s. Source: PostgreSQL, "Routine Vacuuming"."""

# The details of these errors quote rows: a device token, say.
_QUOTES_ROWS = ("22", "23")

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))

LEDGER = """
create schema if not exists push_listener;
create table if not exists push_listener.migrations (
  version integer primary key,
  name text not null,
  checksum text not null,
  applied_at timestamptz not null default now()
);
"""
DRIFT = "select finding from push_listener.drift() order by finding"
"""What differs from the privileges, policies and settings that are meant, in words. Needs migration 0011."""
_RECORD = "insert into push_listener.migrations (version, name, checksum) values (%s, %s, %s)"
_FORGET = "delete from push_listener.migrations where version = %s"
_NO_LEDGER = "drop table push_listener.migrations; drop schema push_listener"


# Who is at work on the queue. A worker that listens holds its liveness lock. One that sweeps has nothing but its
# sessions; through a pooler these may outlive it, and mean nothing when every worker has signed off.
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

# Rows in the hands of workers that have no liveness lock: they call fetch_pending_pushes, or sweep and have not signed
# off.
_LEASED = """
select count(*), max(p.next_attempt_at)::text
  from public.push_notifications p
  where p.status = 'processing' and p.next_attempt_at > now() and p.next_attempt_at < 'infinity'
    and (p.claimed_by is null and p.delivery_attempts > 0
         or exists (
              select from push_listener.workers w
                where w.id = p.claimed_by and w.stopped_at is null and not w.guarded))
"""


class MigrationError(Exception):
    """A migration cannot be applied or rolled back; the message says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step, as it stands in ``db/migrations``."""

    version: int
    name: str
    up: str
    down: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file that was, or would be, applied (hex)."""
        return hashlib.sha256(self.up.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class State:
    """Where one migration stands in one database."""

    migration: Migration
    applied_at: datetime | None
    changed: bool
    """The file is not the one that was applied."""


def sql_directory(name: str) -> Path:
    """``db/<name>``: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "db" / name
    return installed if installed.is_dir() else package.parent / "db" / name


def load(directory: Path | None = None) -> list[Migration]:
    """Every migration, in order. Raises MigrationError on a gap, a duplicate number or a missing way back."""
    folder = directory or sql_directory("migrations")
    found = []
    for path in sorted(folder.glob("*.sql")):
        if path.name.endswith(".down.sql"):
            continue
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise MigrationError(f"{path.name} is not named like 0001_what_it_does.sql")
        down = path.with_suffix(".down.sql")
        if not down.is_file():
            raise MigrationError(f"{path.name} has no way back: {down.name} is missing")
        found.append(Migration(int(match[1]), match[2], path.read_text(), down.read_text()))
    numbers = [m.version for m in found]
    if numbers != list(range(1, len(found) + 1)):
        raise MigrationError(f"migrations must be numbered 1, 2, 3 ... without gaps; found {numbers}")
    return found


def status(dsn: str, migrations: list[Migration] | None = None) -> list[State]:
    """What has been applied to the database and what has not; changes nothing."""
    with _connect(dsn) as conn:
        return _states(conn, load() if migrations is None else migrations)


def foresee(dsn: str, *, expire_older_than: timedelta | None = timedelta(days=1)) -> list[str]:
    """What ``apply`` would warn of at its start: what becomes of waiting rows, and what deserves a look.

    Changes nothing. Empty once the first step has been applied. Raises MigrationError, as ``apply`` would,
    when the database cannot be adopted.
    """
    warnings: list[str] = []
    with _connect(dsn, warnings.append) as conn:
        first, *_ = _states(conn, load())
        if first.applied_at is None:
            _set(conn, expire_older_than=_interval(expire_older_than))
            with conn.transaction(force_rollback=True):
                conn.execute(LEDGER)
                with _named(first.migration):
                    conn.execute(first.migration.up.encode())
    return warnings


def apply(
    dsn: str,
    migrations: list[Migration] | None = None,
    *,
    expire_older_than: timedelta | None = timedelta(days=1),
    share_new_columns: bool = False,
    report: Callable[[Migration], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> list[Migration]:
    """Applies what is missing, calling ``report`` after each; returns what was applied.

    Privileges that have changed since are set again, each time, and ``warn`` is told which.

    ``expire_older_than`` is for a queue that is adopted: rows that have been waiting for longer expire
    instead of being sent; None: all are sent. ``share_new_columns``: users who could read every column of an
    adopted table read those that push-listener adds, too. ``warn`` gets what the database says on the way.

    Raises MigrationError when an applied file was changed since, when the database holds a migration that
    this version does not know, when the database cannot be adopted, or when a step fails: the steps before
    it stay applied, the failing one leaves nothing behind.
    """
    known = load() if migrations is None else migrations
    done = []
    with _connect(dsn, warn) as conn, _turn(conn, warn):
        _set(conn, in_batches="on", expire_older_than=_interval(expire_older_than))
        states = _states(conn, known)
        _refuse_changed(states)
        for state in states:
            if state.applied_at is None:
                migration = state.migration
                up = LEDGER + migration.up if migration.version == 1 else migration.up
                _run(conn, migration, up, _RECORD, (migration.version, migration.name, migration.checksum))
                report(migration)
                done.append(migration)
        if share_new_columns:
            conn.execute("select push_listener.share_new_columns()")
        for finding in _mend_privileges(conn):
            warn(f"privileges had changed, and are set again: {finding}")
        if done:
            # PostgREST caches the schema. Source: PostgREST, Schema Cache.
            conn.execute("notify pgrst, 'reload schema'")
    return done


def drift(dsn: str) -> list[str]:
    """What differs from the privileges, policies and settings that ``apply`` sets; changes nothing."""
    with _connect(dsn) as conn:
        return _drift(conn)


def exposures(dsn: str) -> list[Way]:
    """Who can cause, change or read a push in this database; changes nothing."""
    with _connect(dsn) as conn:
        return exposure.find(conn)


def _drift(conn: Connection) -> list[str]:
    there = conn.execute("select to_regprocedure('push_listener.drift()') is not null").fetchone()
    if there is None or not there[0]:
        return []
    return [str(finding) for (finding,) in conn.execute(DRIFT).fetchall()]


def _mend_privileges(conn: Connection) -> list[str]:
    """Sets them again; returns what differed."""
    found = _drift(conn)
    if found:
        try:
            conn.execute("select push_listener.secure()")
        except psycopg.Error as error:
            said = [str(error.diag.message_primary or error), error.diag.message_hint or ""]
            raise MigrationError("\n".join(filter(None, said))) from error
    return found


def rollback(
    dsn: str,
    to: int,
    migrations: list[Migration] | None = None,
    *,
    discard_data: bool = False,
    report: Callable[[Migration], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> list[Migration]:
    """Takes back every applied migration above version ``to`` (0: all), newest first; returns them.

    An adopted table becomes what it was. A table that push-listener made is dropped only when it is empty,
    and rows that an adopted table could not hold before are deleted, only when ``discard_data`` is set.

    Raises MigrationError, before anything is changed, when data would be lost and when workers live; and between two
    steps when fetch_pending_pushes has handed out rows meanwhile: then it can be run again.
    """
    known = load() if migrations is None else migrations
    undone: list[Migration] = []
    # A worker that begins takes the second lock for a moment: from here on it is seen below, or cannot begin.
    with _connect(dsn, warn) as conn, _turn(conn, warn), _turn(conn, warn, ROLLBACK_LOCK):
        _set(conn, discard_data="on" if discard_data else "off")
        applied = [s.migration for s in _states(conn, known) if s.applied_at is not None]
        steps = [migration for migration in reversed(applied) if migration.version > to]
        if not discard_data:
            _refuse_losses(conn, steps)
        for migration in steps:
            _refuse_while_in_use(conn)
            if migration.version == 1:
                _run(conn, migration, migration.down, _NO_LEDGER)
            else:
                _run(conn, migration, migration.down, _FORGET, (migration.version,))
            report(migration)
            undone.append(migration)
        if undone:
            conn.execute("notify pgrst, 'reload schema'")
    return undone


def refuse_while_in_use(dsn: str) -> None:
    """Raises MigrationError when a worker lives, or has rows in hand that it may be sending."""
    with _connect(dsn) as conn:
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
    leased = conn.execute(_LEASED).fetchone()
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
            with _named(migration):
                losses += [str(row[0]) for row in conn.execute(match[1].encode())]
    if losses:
        raise MigrationError(
            "the way back would lose what cannot be had again, and nothing has been changed:"
            + "".join(f"\n- {loss}" for loss in reversed(losses))
            + "\nComplete or save it, then roll back with --discard-data, which deletes it."
        )


def _connect(dsn: str, warn: Callable[[str], None] = lambda _: None) -> Connection:
    if is_transaction_pooler_blocking(dsn):
        raise MigrationError(
            "this address is a pooler in transaction mode (on Supabase: port 6543), through which no lock can be held "
            "over several steps; set LISTEN_DATABASE_URL to the direct connection or to the pooler in session mode "
            "(port 5432)"
        )
    conn = psycopg.connect(dsn, autocommit=True, application_name=APPLICATION_NAME, connect_timeout=15)
    conn.add_notice_handler(lambda notice: warn(notice.message_primary or ""))
    # Names without a schema are looked up in pg_catalog alone, so that nothing which others have created in public runs
    # in here. pg_temp is named because types are looked up there first otherwise. The application's triggers run with
    # the path that the session had: the statements that change its rows give it back to them.
    conn.execute("set search_path = pg_catalog, pg_temp")
    stranger = conn.execute(STRANGERS_SCHEMA).fetchone()
    if stranger is not None:
        conn.close()
        raise MigrationError(str(StrangersSchema(str(stranger[0]))))
    conn.execute("set client_min_messages = warning")
    conn.execute(
        "set statement_timeout = 0"
    )  # an index of a large table takes its time, and is in nobody's way
    return conn


def _set(conn: Connection, **settings: str) -> None:
    for name, value in settings.items():
        conn.execute("select set_config(%s, %s, false)", (f"push_listener.{name}", value))


def _interval(age: timedelta | None) -> str:
    """As push_listener.expire_older_than takes it, and a person reads it."""
    if age is None:
        return "never"
    seconds = round(age.total_seconds())
    size, unit = next((n, u) for n, u in _UNITS if seconds % n == 0)
    return f"{seconds // size} {unit}{'' if seconds == size else 's'}"


@contextmanager
def _turn(conn: Connection, warn: Callable[[str], None], key: int = LOCK_KEY) -> Iterator[None]:
    # Tried, not waited for: a session waiting inside pg_advisory_lock() holds a snapshot, and CREATE INDEX
    # CONCURRENTLY in the session that has the lock would wait for that snapshot to go: a deadlock.
    if not _lock_within(conn, key, _TURN_NOTE_S):
        warn(f"waiting for a lock: {_holder(conn, key)}")
        if not _lock_within(conn, key, _TURN_WAIT_S - _TURN_NOTE_S):
            raise MigrationError(f"no lock after {_TURN_WAIT_S:.0f} s: {_holder(conn, key)}")
    try:
        yield
    finally:
        if not conn.closed:
            conn.execute("select pg_advisory_unlock(%s)", (key,))


def _lock_within(conn: Connection, key: int, seconds: float) -> bool:
    acquire = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda got: not got),
        wait=tenacity.wait_random(0.2, 0.5),
        stop=tenacity.stop_after_delay(seconds),
    )
    try:
        return bool(acquire(_try_lock, conn, key))
    except tenacity.RetryError:
        return False


def _holder(conn: Connection, key: int) -> str:
    """Who keeps this process from migrating, and what to do."""
    holder = locks.holder_of(conn, key)
    if holder is None:
        return "it has just become free; run this again"
    pid, role = holder
    if pid is None:
        return (
            "a prepared transaction holds it, which is no migration; find it in pg_prepared_xacts and end it with "
            "rollback prepared"
        )
    return (
        f"process {pid} of role {role} holds it. If that is another push-listener migrate, it is released when that is "
        f"done. If not, let a superuser or a role with pg_signal_backend run select pg_terminate_backend({pid})"
    )


def _try_lock(conn: Connection, key: int) -> bool:
    row = conn.execute("select pg_try_advisory_lock(%s)", (key,)).fetchone()
    return row is not None and bool(row[0])


def _states(conn: Connection, known: list[Migration]) -> list[State]:
    applied: dict[int, tuple[str, datetime]] = {}
    ledger = conn.execute("select to_regclass('push_listener.migrations') is not null").fetchone()
    if ledger is not None and ledger[0]:
        with conn.cursor(row_factory=args_row(lambda v, c, a: (int(v), (str(c), a)))) as cursor:
            cursor.execute("select version, checksum, applied_at from push_listener.migrations")
            applied = dict(cursor)
    strangers = sorted(applied.keys() - {m.version for m in known})
    if strangers:
        raise MigrationError(
            f"the database holds migration {strangers[-1]:04d}, which this version of push-listener does not "
            "know; use the newer version"
        )
    states = []
    for migration in known:
        checksum, applied_at = applied.get(migration.version, (migration.checksum, None))
        states.append(State(migration, applied_at, checksum != migration.checksum))
    return states


def _refuse_changed(states: list[State]) -> None:
    changed = [s.migration for s in states if s.changed]
    if changed:
        names = ", ".join(f"{m.version:04d}_{m.name}" for m in changed)
        raise MigrationError(
            f"{names}: the file is not the one that was applied to this database; an applied migration is "
            "never edited, a change is a new migration"
        )


def _run(
    conn: Connection,
    migration: Migration,
    script: str,
    ledger: str,
    values: tuple[object, ...] | None = None,
) -> None:
    with _named(migration):
        if script.startswith(_CONCURRENTLY):
            for statement in statements(script):
                _alone(conn, statement)
            conn.execute(ledger.encode(), values)
        else:
            _in_transaction(conn, script, ledger, values)


@contextmanager
def _named(migration: Migration) -> Iterator[None]:
    """What the database says against a migration, as a MigrationError that names it."""
    try:
        yield
    except psycopg.errors.LockNotAvailable:
        raise MigrationError(
            f"{migration.version:04d}_{migration.name}: a table is in use by a transaction that does not end. "
            "This step has changed nothing. Wait for it or end it (pg_stat_activity tells whose it is), and run "
            "this again."
        ) from None
    except psycopg.Error as error:
        said = [f"{migration.version:04d}_{migration.name}: {errors.explain_statement(error)}"]
        if not (error.sqlstate or "").startswith(_QUOTES_ROWS):
            said += filter(None, (error.diag.message_detail, error.diag.message_hint))
        raise MigrationError("\n".join(said)) from error


def _in_transaction(conn: Connection, script: str, ledger: str, values: tuple[object, ...] | None) -> None:
    timeouts = iter(LOCK_TIMEOUTS_MS)
    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(psycopg.errors.LockNotAvailable),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
        stop=tenacity.stop_after_attempt(len(LOCK_TIMEOUTS_MS)),
        reraise=True,
    )
    for attempt in tries:
        with attempt, conn.transaction():
            conn.execute(f"set local lock_timeout = {next(timeouts)}".encode())
            conn.execute(script.encode())
            conn.execute(ledger.encode(), values)


def statements(script: str) -> list[str]:
    """The statements of a script, each without the comments before it. For scripts as in db/migrations only."""
    parts = [_COMMENTS.sub("", match[0], count=1).strip() for match in _STATEMENT.finditer(script)]
    return [part for part in parts if part]


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(psycopg.errors.DeadlockDetected),
    stop=tenacity.stop_after_attempt(10),
    reraise=True,
)
def _alone(conn: Connection, statement: str) -> None:
    """Runs one statement outside a transaction, one about an index concurrently."""
    match = _INDEX.match(statement)
    if match is None:
        conn.execute(statement.encode())
        return
    verb, index = match.groups()
    if verb != "drop index":
        # An interrupted concurrent build leaves an invalid index, which "if not exists" takes for done.
        invalid = conn.execute(
            "select from pg_index i join pg_class c on c.oid = i.indexrelid "
            "where c.relname = %s and c.relnamespace = 'public'::regnamespace and not i.indisvalid",
            (index,),
        ).fetchone()
        if invalid is not None:
            conn.execute(sql.SQL("drop index concurrently {}").format(sql.Identifier("public", index)))
    conn.execute(statement.replace(verb, verb + " concurrently", 1).encode())
