"""Explains a failure of the database and says what to do about it. Pure.

libpq and the server quote host, port, user and database in their messages, and each of these may be a part of a
password whose delimiters were not encoded. So their messages are never shown: they only select a sentence of our own.
"""

from __future__ import annotations

import re
from enum import StrEnum

import psycopg
from psycopg_pool import PoolTimeout


class Condition(StrEnum):
    """What keeps the database from serving push-listener, in fixed words that anybody may read."""

    LOGIN = "the database refuses the user name or the password"
    NO_DATABASE = "the database does not exist"
    NO_CONNECT = "the user may not connect to the database"
    PRIVILEGE = "the database user lacks a privilege"
    READ_ONLY = "the database is read-only"
    FULL = "the database has no connection left"
    STARTING = "the database is starting up, shutting down or recovering"
    NO_ANSWER = "the database does not answer in time"
    NO_SCHEMA = "the schema of push-listener is missing in the database"
    NO_TABLE = "tables of push-listener are missing in the database"
    NO_COLUMN = "columns of push-listener are missing in the database"
    NO_FUNCTION = "functions of push-listener are missing in the database"
    REFUSED = "the database refuses what push-listener reads or writes"
    AWAY = "the database cannot be reached"

    @property
    def is_lasting(self) -> bool:
        """Whether a person must do something before a login can succeed, so that frequent tries are of no use."""
        return self in (Condition.LOGIN, Condition.NO_DATABASE, Condition.NO_CONNECT)


_WITHHELD = (
    "the connection failed; the reason is withheld because it may quote the address: "
    'psql "$DATABASE_URL" (or "$LISTEN_DATABASE_URL") shows it'
)

_REFUSED_LOGIN = (
    "the server refuses the user name or the password, or does not let this user in from this machine (pg_hba.conf): "
    "check user name and password in the address; behind Supabase's pooler the user name is postgres.<ref>"
)
_NO_DATABASE = "the server has no database of that name: check the part after the last / of the address"
_NO_CONNECT = "the user may not connect to this database: grant CONNECT on it, or name another user"
_LACKS_PRIVILEGE = "the user of the address lacks a privilege: docs/privileges.md lists what each part needs"
_TOO_MANY = (
    "the server, the pooler, the database or the user has no connection left: close others, raise the limit, or use a "
    "pooler"
)
_STARTING = "the server is starting up, shutting down or recovering; it is worth another try soon"
_ENDED = "the server has ended the connection: it is being restarted, or somebody has ended it"
_READ_ONLY = (
    "the server is read-only: it is a standby or is failing over; the address must lead to the primary server"
)
_NOT_AS_ASKED = "no server of the address is what its target_session_attrs asks for"
_NO_SSL_RULE = (
    "the server has no rule (pg_hba.conf) for this user, database and machine, or takes it over TLS only: add "
    "sslmode=require to the address"
)
_PARAMETER = (
    "a parameter of the address, or a PG... environment variable, has a value that libpq does not take"
)
_CLOSED = (
    "the server closed the connection: it is being restarted, or what answers there is no Postgres, or it wants TLS "
    "(sslmode in the address)"
)
_UNREACHABLE = (
    "the network has no way to the host; Supabase's direct address (db.<ref>.supabase.co) has IPv6 only: without IPv6 "
    "use the pooler in session mode (port 5432)"
)
_TIMEOUT = (
    "there is no answer in time: check host and port in the address, firewalls, and the list of addresses that may "
    "connect"
)

# Source: PostgreSQL, "Error Codes".
_BY_SQLSTATE = {
    "08P01": "the server or pooler does not take what was asked: a pooler may refuse a parameter of the address",
    "25006": _READ_ONLY,
    "28000": _REFUSED_LOGIN,
    "28P01": _REFUSED_LOGIN,
    "3D000": _NO_DATABASE,
    "40001": "another transaction got in the way; try again",
    "40P01": "two transactions waited for each other; try again",
    "42501": _LACKS_PRIVILEGE,
    "53100": "the server's disk is full",
    "53200": "the server is out of memory",
    "53300": _TOO_MANY,
    "53400": "the server is at a limit of its configuration",
    "55P03": "a lock could not be taken in time: another transaction holds it (pg_stat_activity tells which)",
    "57014": "the server cancelled the statement: it took longer than statement_timeout, or somebody cancelled it",
    "57P01": _ENDED,
    "57P02": _ENDED,
    "57P03": _STARTING,
    "57P05": "the server has ended the connection, which was idle for too long",
}

# psycopg has no SQLSTATE for a failed connection, only a text. Messages of the server come before those of the network:
# if an address names several servers, the server that answers is the one to repair. Sources: fe-connect.c,
# fe-secure-openssl.c, auth.c, postinit.c of PostgreSQL; PgBouncer; Supavisor.
_BY_TEXT = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), reason)
    for pattern, reason in (
        (r"no pg_hba\.conf entry.*no encryption", _NO_SSL_RULE),
        (
            r"authentication failed|no password supplied|no pg_hba\.conf entry|pg_hba\.conf rejects|"
            r'role "" does not exist|'
            r"not permitted to log in|no such user|tenant or user not found|"
            r"tenant/user|wrong password|login rejected|empty password|password authentication",
            _REFUSED_LOGIN,
        ),
        (r"permission denied for database|CONNECT privilege", _NO_CONNECT),
        (r'database "" does not exist|no such database', _NO_DATABASE),
        (
            r"too many (connections|clients)|connection slots are reserved|remaining connection slots|"
            r"max clients|max client connections|max_client_conn|no more connections allowed",
            _TOO_MANY,
        ),
        (
            r"the database system is (starting up|shutting down|in recovery mode|not yet accepting|not accepting)|"
            r"not currently accepting connections",
            _STARTING,
        ),
        (r"unsupported startup parameter", _BY_SQLSTATE["08P01"]),
        (
            r"server login has been failing|server login failed|cannot connect to server",
            "the pooler cannot connect to its server: see the pooler's own log",
        ),
        (
            r"session is (not )?read-only|server is (not )?in hot standby mode",
            _NOT_AS_ASKED,
        ),
        (
            r"root certificate file|root\.crt|certificate authority file|sslrootcert",
            "the file of root certificates (sslrootcert in the address, or ~/.postgresql/root.crt) is missing or "
            "cannot be read: name the right one",
        ),
        (
            r"private key file|certificate file|certificate present|could not load private key",
            "the client's certificate or key (sslcert and sslkey in the address) is missing or cannot be used",
        ),
        (
            r"server certificate for|certificate verify failed|certificate has expired|self.signed",
            "the server's certificate is not valid for the host of the address, or its authority is not known: "
            "check the host, and sslrootcert and sslmode in the address",
        ),
        (
            r"server does not support SSL",
            "the server has no TLS, and sslmode in the address, or PGSSLMODE, asks for it",
        ),
        (
            r"SSL connection is required|SSL required|requires SSL|connection is insecure",
            "the server takes connections over TLS only: add sslmode=require to the address",
        ),
        (
            r"invalid response to SSL negotiation|expected authentication request|"
            r"unsupported frontend protocol",
            "what answers at this host and port is no Postgres: check both in the address",
        ),
        (
            r"definition of service|service file",
            "the service that the address names is not in the service file",
        ),
        (
            r"invalid [\w-]+ value|invalid port number|invalid integer value|invalid connection option|"
            r"could not match \d+|could not parse network address|may not be used with|sslmode|channel.binding|"
            r"require_auth",
            _PARAMETER,
        ),
        (
            r"failed to resolve host|could not translate host name|name or service not known|"
            r"nodename nor servname|temporary failure in name resolution|no address associated",
            "the name of the host cannot be resolved: check it in the address; Supabase's direct address "
            "(db.<ref>.supabase.co) has IPv6 only, and without IPv6 the pooler in session mode (port 5432) is the way",
        ),
        (
            r"connection refused",
            "the host refuses the connection: no server listens there; check host and port in the address, and "
            "whether the server runs",
        ),
        (
            r"network is unreachable|no route to host|cannot assign requested address|host is (down|unreachable)",
            _UNREACHABLE,
        ),
        (
            r"no such file or directory",
            "no server listens on the socket: check the directory in the address, or name a host if there is none "
            "in it, and check whether the server runs",
        ),
        (
            r"permission denied",
            "this process may not open the server's socket: check the permissions of its directory",
        ),
        (r"timeout expired|timed out|timeout", _TIMEOUT),
        (
            r"closed the connection unexpectedly|connection (was )?reset|connection (is|was) closed|broken pipe|"
            r"unexpected eof|EOF detected|connection (is|was) lost|connection not open|no connection to the server",
            _CLOSED,
        ),
        (r"SSL (error|SYSCALL)", "no TLS could be agreed on with the server: check sslmode in the address"),
    )
)

ROW_FAULTS = (psycopg.Error, ValueError, TypeError)
"""Errors that a single row may cause, unless they are transient: psycopg cannot encode one of its values, Postgres
cannot store one, or a trigger of the application raises an error. Such a row must not block others."""

# Connections, transactions, resources, an operator's action, files; a prepared statement that a pooler has lost or
# kept; a lock that is not available; an internal error of Postgres, or of a pooler without a connection. XX001 and
# XX002 are not among them: the data of one row are damaged, and remain so.
_TRANSIENT = ("08", "25", "26000", "40", "42P05", "53", "57", "58", "55P03", "55006", "XX000")

_CONDITIONS_BY_SQLSTATE = {
    "3F000": Condition.NO_SCHEMA,
    "42P01": Condition.NO_TABLE,
    "42703": Condition.NO_COLUMN,
    "42883": Condition.NO_FUNCTION,
    "42501": Condition.PRIVILEGE,
}
_CONDITIONS = {
    _REFUSED_LOGIN: Condition.LOGIN,
    _NO_SSL_RULE: Condition.LOGIN,
    _NO_DATABASE: Condition.NO_DATABASE,
    _NO_CONNECT: Condition.NO_CONNECT,
    _LACKS_PRIVILEGE: Condition.PRIVILEGE,
    _READ_ONLY: Condition.READ_ONLY,
    _NOT_AS_ASKED: Condition.READ_ONLY,
    _TOO_MANY: Condition.FULL,
    _STARTING: Condition.STARTING,
    _TIMEOUT: Condition.NO_ANSWER,
}

# A connection is replaced after these: the server behind it has become read-only, is shutting down or is out of memory
# for this session, or the pooler has given the session to another client. 42501: a role that was dropped and recreated
# keeps its name, and its sessions have no privilege any more. Another connection to the same address may work.
_SPOILING = ("08", "25", "26000", "42501", "42P05", "53200", "57P", "58", "XX000")

_QUOTED = re.compile(r"\"[^\"]*\"|(?<!\w)'[^']*'(?!\w)")
_SQLSTATE = re.compile(r"[0-9A-Z]{5}")

# Messages of these SQLSTATE classes name the user, the host or the database, and are never shown.
_CONNECTION_CLASSES = ("08", "28", "3D", "53", "57")

# A message about a missing privilege is shown only if its object belongs to a schema: the name of a database or a role
# is a part of the address.
_DENIED = re.compile(
    r"(?:permission denied for|must be owner of) "
    r"(?P<kind>schema|table|relation|view|sequence|index|function|procedure|type) (?P<name>\w+)|"
    r"new row violates row-level security policy for table \"\w+\""
)

_IN_FUNCTION = re.compile(r"^PL/pgSQL function (\w+(?:\.\w+)?)\(", re.MULTILINE)


# What each command needs on a table or view. Everything that run needs is granted to the role push_listener.
_GRANTS = {
    "push_notifications": "select and update for run, insert for send, delete for purge",
    "push_delivery_logs": "select and insert for run, delete for purge",
    "push_devices": "select for run",
    "push_recipients": "select for run",
    "telemetry_logs": "delete for purge --telemetry",
    "daily_counts": "select for stats",
}


def _grant_missing(kind: str | None, name: str | None) -> str:
    """Which grant would help; the name of the user is a part of the address, and is not shown."""
    needed = {"schema": "usage", "function": "execute"}.get(kind or "") or _GRANTS.get(name or "")
    what = (
        f"the user of the address needs {needed} on it"
        if needed
        else "the user of the address lacks a privilege"
    )
    return (
        f'{what}. "grant push_listener to ..." gives all that run needs, and the owner of the tables has the rest; '
        "push-listener migrate sets again what somebody has revoked (docs/privileges.md)"
    )


def explain(error: BaseException | None) -> str:
    """Says why a connection or a statement failed and what to do about it, for the log and for people.

    Quotes no part of the address and no value of a row.
    """
    if isinstance(error, PoolTimeout):
        if error.__cause__ is not None:  # the failure of the pool's last try to connect
            return explain(error.__cause__)
        return "no connection came free in time: the server is away or overloaded, or refuses connections"
    if isinstance(error, TimeoutError):
        return _TIMEOUT
    if not isinstance(error, psycopg.Error):
        return f"a fault of push-listener's own ({type(error).__name__})"
    sqlstate = sqlstate_of(error)
    if sqlstate is None:
        text = _QUOTED.sub('""', str(error))
        return next((reason for pattern, reason in _BY_TEXT if pattern.search(text)), _WITHHELD)
    said = error.diag.message_primary or ""
    if sqlstate == "42501" and (denied := _DENIED.fullmatch(said)):
        return f"{said}: {_grant_missing(denied['kind'], denied['name'])}"
    if sqlstate == "42501" and said.startswith("permission denied for database"):
        return "permission denied for database: the user of the address needs CREATE on it"
    if sqlstate in _BY_SQLSTATE:
        return _BY_SQLSTATE[sqlstate]
    if not _SQLSTATE.fullmatch(sqlstate):
        return _WITHHELD
    function = _IN_FUNCTION.search(error.diag.context or "")
    return f"the server answered with SQLSTATE {sqlstate}" + (
        f", in the function {function[1]}" if function else ""
    )


def condition(error: BaseException | None) -> Condition:
    """The kind of a failure of a connection or a statement."""
    if isinstance(error, PoolTimeout):
        return condition(error.__cause__)
    if isinstance(error, psycopg.Error) and (found := _CONDITIONS_BY_SQLSTATE.get(sqlstate_of(error) or "")):
        return found
    if error is None:
        return Condition.AWAY
    answered = isinstance(error, psycopg.Error) and sqlstate_of(error) is not None
    return _CONDITIONS.get(
        explain(error), Condition.REFUSED if answered and not is_transient(error) else Condition.AWAY
    )


def spoils_session(error: BaseException) -> bool:
    """Whether the connection on which a statement failed is to be replaced."""
    if not isinstance(error, psycopg.Error):
        return False
    return (sqlstate_of(error) or "").startswith(_SPOILING) or _is_stale_plan(error)


def _is_stale_plan(error: psycopg.Error) -> bool:
    """Whether a prepared statement returns other columns than before, because a table was altered.

    The server repeats that for as long as the session lasts. The message is translated; the name of the function is
    not. Source: plancache.c of PostgreSQL.
    """
    return sqlstate_of(error) == "0A000" and error.diag.source_function == "RevalidateCachedQuery"


def explain_statement(error: psycopg.Error) -> str:
    """Like ``explain``, but quotes what the server says against a statement, for the person who runs a command.

    Not for the log: the words of a trigger, for example, may contain values of a row.
    """
    sqlstate, said = sqlstate_of(error), error.diag.message_primary
    if said and sqlstate not in _BY_SQLSTATE and not (sqlstate or "").startswith(_CONNECTION_CLASSES):
        return said
    return explain(error)


def sqlstate_of(error: psycopg.Error) -> str | None:
    """The SQLSTATE; None: the server has not answered."""
    return error.diag.sqlstate or error.sqlstate  # the latter lacks codes that an application defines


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may succeed later. If not, the cause is in a row or in the statement."""
    if not isinstance(error, psycopg.Error):
        return isinstance(error, TimeoutError)
    sqlstate = sqlstate_of(error)
    if sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return sqlstate.startswith(_TRANSIENT) or _is_stale_plan(error)


def is_of_rows(error: BaseException) -> bool:
    """Whether the same statement with fewer rows, or with others, may succeed.

    A lock that a trigger waits for, and a slow trigger, are transient faults, but a single row may be the cause.
    """
    return not is_transient(error) or isinstance(
        error, psycopg.errors.LockNotAvailable | psycopg.errors.QueryCanceled
    )


def fault_name(error: BaseException | None) -> str:
    """Names an error without its message, which may quote values."""
    sqlstate = sqlstate_of(error) if isinstance(error, psycopg.Error) else None
    if isinstance(error, psycopg.Error) and sqlstate == "42501":
        said = error.diag.message_primary or ""
        return f"SQLSTATE 42501 ({said})" if _DENIED.fullmatch(said) else "SQLSTATE 42501"
    return f"SQLSTATE {sqlstate}" if sqlstate else type(error).__name__
