"""A session that migrates: how it connects, waits for its turn, and runs a script.

One process migrates at a time, under an advisory lock. The others wait, and then find nothing to do.

A script that begins with ``-- migrate: concurrently`` is run statement by statement, and builds its indexes
concurrently. Every other script is one transaction. It waits for a lock only for a short time, and is tried again.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import LiteralString

import psycopg
import tenacity
from psycopg import sql

from listener.postgres import errors, locks
from listener.postgres.connect import ENCODING, is_transaction_pooler_blocking
from listener.postgres.workers import STRANGERS_SCHEMA, StrangersSchema
from listener.schema.migrate.disk import MigrationError, WrongDatabase, statements
from listener.schema.migrate.ledger import Connection, Statement

LOCK_KEY = 7_308_332_045_000_001
"""Advisory lock held while migrating. Any login may take it."""

APPLICATION_NAME = "push-listener migrate"

_CONCURRENTLY = "-- migrate: concurrently"
_INDEX = re.compile(r"(create index|create unique index|drop index) if (?:not )?exists (\S+)")

_WORDS = (
    "select",
    "insert",
    "update",
    "delete",
    "with",
    "copy",
    "merge",
    "call",
    "do",
    "begin",
    "fetch",
    "vacuum",
)
_WAITED_FOR = """
select a.pid, coalesce(a.usename::text, '?'), coalesce(a.state, '?'),
       coalesce(extract(epoch from clock_timestamp() - a.xact_start)::bigint::text, '?'),
       coalesce(substring(a.query from '^\\s*([a-zA-Z]+)'), '')
  from pg_stat_progress_create_index p
  join pg_stat_activity a on a.pid = p.current_locker_pid
  where p.pid = %s
"""

LOCK_TIMEOUTS_MS = (100,) * 10 + (1500, 100, 100) * 10
"""How long each try waits for a lock on a table, in ms.

A session that waits blocks every session that comes later, so most waits are short. Some are longer, because an
autovacuum gives way only to a session that has waited for deadlock_timeout, by default 1 s. Source: PostgreSQL,
"Routine Vacuuming"."""


@dataclass(frozen=True)
class Patience:
    """How long a migration waits for others."""

    turn: float = 600.0
    """The most seconds to wait for another process that migrates."""
    note: float = 5.0
    """Seconds after which it says what it waits for."""
    lock_timeouts: tuple[int, ...] = LOCK_TIMEOUTS_MS
    """The most milliseconds to wait for a lock on a table, try by try."""


PATIENCE = Patience()

# The details of errors in these SQLSTATE classes quote rows, which may hold a device token.
_QUOTES_ROWS = ("22", "23")


# The settings that this session relies on. They override those of the role, the database and the server. No statement
# has a timeout, because building an index of a large table takes long, and blocks nobody. jit is off, because compiling
# a statement on the catalogue takes longer than running it.
_SETTINGS: LiteralString = """
select set_config(s.name, v.value, false)
  from (values
    ('client_min_messages', 'warning'), ('datestyle', 'ISO, MDY'), ('intervalstyle', 'postgres'),
    ('default_transaction_isolation', 'read committed'), ('statement_timeout', '0'), ('lock_timeout', '0'),
    ('idle_in_transaction_session_timeout', '0'), ('idle_session_timeout', '0'), ('transaction_timeout', '0'),
    ('jit', 'off')
  ) as v(name, value)
  join pg_settings s on lower(s.name) = v.name
"""


def connect(dsn: str, warn: Callable[[str], None] = lambda _: None) -> Connection:
    """A session in autocommit. Raises WrongDatabase behind a transaction pooler, or if a stranger owns our schema."""
    if is_transaction_pooler_blocking(dsn):
        raise WrongDatabase(
            "this address is a pooler in transaction mode (on Supabase: port 6543), through which no lock can be held "
            "over several steps; set LISTEN_DATABASE_URL to the direct connection or to the pooler in session mode "
            "(port 5432)"
        )
    conn = psycopg.connect(
        dsn, autocommit=True, application_name=APPLICATION_NAME, connect_timeout=15, client_encoding=ENCODING
    )
    conn.add_notice_handler(lambda notice: warn(notice.message_primary or ""))
    # Postgres looks up names without a schema in pg_catalog only, so that no function that others have created in
    # public runs here. pg_temp is named last, because otherwise Postgres looks up types there first. The application's
    # triggers need the search_path of its own sessions, so the statements that change its rows set that path.
    conn.execute("set search_path = pg_catalog, pg_temp")
    stranger = conn.execute(STRANGERS_SCHEMA).fetchone()
    if stranger is not None:
        conn.close()
        raise WrongDatabase(str(StrangersSchema(str(stranger[0]))))
    conn.execute(_SETTINGS)
    return conn


def set_parameters(conn: Connection, **settings: str) -> None:
    """Sets the parameters ``push_listener.NAME``, which the scripts read."""
    for name, value in settings.items():
        conn.execute("select set_config(%s, %s, false)", (f"push_listener.{name}", value))


@contextmanager
def turn(
    conn: Connection, warn: Callable[[str], None], key: int = LOCK_KEY, patience: Patience = PATIENCE
) -> Iterator[None]:
    """Holds an advisory lock. Raises MigrationError if another session does not release it for ten minutes."""
    # A session that waits inside pg_advisory_lock() holds a snapshot. CREATE INDEX CONCURRENTLY, in the session that
    # has the lock, would wait for that snapshot: a deadlock. So this session tries the lock again and again.
    if not _lock_within(conn, key, patience.note):
        warn(f"waiting for a lock: {_holder(conn, key)}")
        if not _lock_within(conn, key, patience.turn - patience.note):
            raise MigrationError(f"no lock after {patience.turn:.0f} s: {_holder(conn, key)}")
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
    """Says which session keeps this process from migrating, and what to do."""
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


@contextmanager
def waits_told(dsn: str, conn: Connection, warn: Callable[[str], None], every: float) -> Iterator[None]:
    """While ``conn`` builds an index, says which transactions it waits for. It looks again every ``every`` seconds.

    CREATE INDEX CONCURRENTLY itself says nothing. It waits for every transaction with an older snapshot, even if that
    transaction uses another table.
    """
    ended = threading.Event()

    def look() -> None:
        told: set[int] = set()
        while not ended.wait(every):
            with suppress(psycopg.Error), psycopg.connect(dsn, autocommit=True, connect_timeout=5) as other:
                for pid, *facts in other.execute(_WAITED_FOR, (conn.info.backend_pid,)).fetchall():
                    if pid not in told:
                        told.add(int(pid))
                        warn(_waits_for(int(pid), *map(str, facts)))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _waits_for(pid: int, role: str, state: str, age: str, word: str) -> str:
    """The text of a statement may hold data, so only its first word is shown, and only if it is a known SQL word."""
    kind = word.lower() if word.lower() in _WORDS else "another statement"
    return (
        f"the index waits for process {pid} of role {role}, whose transaction has been open for {age} s "
        f"({state}; its last statement: {kind}). If that does not end by itself, end it: "
        f"select pg_terminate_backend({pid})"
    )


def run(
    conn: Connection, label: object, script: str, ledger: Iterable[Statement], patience: Patience = PATIENCE
) -> None:
    """Runs a script and the statements that record it. Raises MigrationError, which names ``label``."""
    with named(label):
        if script.startswith(_CONCURRENTLY):
            for statement in statements(script):
                alone(conn, statement)
            with conn.transaction():
                execute(conn, ledger)
        else:
            statements_of_ledger = list(ledger)

            def work() -> None:
                conn.execute(script.encode())
                execute(conn, statements_of_ledger)

            in_transaction(conn, work, patience)


def execute(conn: Connection, ledger: Iterable[Statement]) -> None:
    """Runs the statements that record the work in the ledger."""
    for statement, values in ledger:
        conn.execute(statement.encode(), values or None)


@contextmanager
def named(label: object) -> Iterator[None]:
    """Turns an error of the database into a MigrationError that names ``label``."""
    try:
        with explained(label):
            yield
    except psycopg.errors.LockNotAvailable:
        raise MigrationError(
            f"{label}: a table is in use by a transaction that does not end. "
            "This step has changed nothing. Wait for it or end it (pg_stat_activity tells whose it is), and run "
            "this again."
        ) from None


@contextmanager
def explained(label: object) -> Iterator[None]:
    """Does the same as ``named``, except for LockNotAvailable, after which the caller tries again."""
    try:
        yield
    except psycopg.errors.LockNotAvailable:
        raise
    except psycopg.Error as error:
        said = [f"{label}: {errors.explain_statement(error)}"]
        if not (error.sqlstate or "").startswith(_QUOTES_ROWS):
            said += filter(None, (error.diag.message_detail, error.diag.message_hint))
        raise MigrationError("\n".join(said)) from error


def in_transaction(conn: Connection, work: Callable[[], None], patience: Patience = PATIENCE) -> None:
    """Does the work in one transaction, and tries again if it does not get a lock soon enough.

    Raises psycopg.errors.LockNotAvailable after the last try.
    """
    timeouts = iter(patience.lock_timeouts)
    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(psycopg.errors.LockNotAvailable),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
        stop=tenacity.stop_after_attempt(len(patience.lock_timeouts)),
        reraise=True,
    )
    for attempt in tries:
        with attempt, conn.transaction():
            conn.execute(f"set local lock_timeout = {next(timeouts)}".encode())
            work()


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(psycopg.errors.DeadlockDetected),
    stop=tenacity.stop_after_attempt(10),
    reraise=True,
)
def alone(conn: Connection, statement: str) -> None:
    """Runs one statement outside a transaction; if it is about an index, concurrently."""
    match = _INDEX.match(statement)
    if match is None:
        conn.execute(statement.encode())
        return
    verb, index = match.groups()
    if verb != "drop index":
        # An interrupted concurrent build leaves an invalid index, and "if not exists" would keep it.
        invalid = conn.execute(
            "select from pg_index i join pg_class c on c.oid = i.indexrelid "
            "where c.relname = %s and c.relnamespace = 'public'::regnamespace and not i.indisvalid",
            (index,),
        ).fetchone()
        if invalid is not None:
            conn.execute(sql.SQL("drop index concurrently {}").format(sql.Identifier("public", index)))
    conn.execute(statement.replace(verb, verb + " concurrently", 1).encode())
