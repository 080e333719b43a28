"""Failures of the database in words of our own: the right ones, and nothing of the address."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import errors
from psycopg_pool import PoolTimeout

from listener.postgres.errors import _BY_SQLSTATE, _BY_TEXT, explain, explain_statement

M = "S3cr3tPart"
"""Stands wherever a text quotes a part of the address."""

AT = f'connection failed: connection to server at "{M}", port 5432 failed: '
SOCKET = f'connection is bad: connection to server on socket "/{M}/.s.PGSQL.5432" failed: '

# Texts of libpq 16 to 18, the server, PgBouncer and Supavisor, and how what is told of them begins.
TEXTS = [
    (f'{AT}FATAL:  password authentication failed for user "{M}"', "the server refuses the user name or the password"),
    (f'{AT}FATAL:  role "{M}" does not exist', "the server refuses the user name or the password"),
    (f'{AT}FATAL:  role "{M}" is not permitted to log in', "the server refuses the user name or the password"),
    (f'{AT}fe_sendauth: no password supplied', "the server refuses the user name or the password"),
    (f'{AT}FATAL:  Peer authentication failed for user "{M}"', "the server refuses the user name or the password"),
    (f'{AT}FATAL:  Tenant or user not found', "the server refuses the user name or the password"),
    (f'{AT}FATAL:  no such user: {M}', "the server refuses the user name or the password"),
    (
        f'{AT}FATAL:  no pg_hba.conf entry for host "1.2.3.4", user "{M}", database "{M}", no encryption',
        "the server has no rule (pg_hba.conf)",
    ),
    (
        f'{AT}FATAL:  no pg_hba.conf entry for host "1.2.3.4", user "{M}", database "{M}", SSL encryption',
        "the server refuses the user name or the password",
    ),
    (f'{AT}FATAL:  database "{M}" does not exist', "the server has no database of that name"),
    (f'{AT}FATAL:  no such database: {M}', "the server has no database of that name"),
    (
        f'{AT}FATAL:  permission denied for database "{M}"\nDETAIL:  User does not have CONNECT privilege.',
        "the user may not connect to this database",
    ),
    (f'{AT}FATAL:  too many connections for database "{M}"', "the server, the pooler, the database or the user has no"),
    (f'{AT}FATAL:  sorry, too many clients already', "the server, the pooler, the database or the user has no"),
    (
        f'{AT}FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute',
        "the server, the pooler, the database or the user has no",
    ),
    (
        f'{AT}FATAL:  MaxClientsInSessionMode: max clients reached',
        "the server, the pooler, the database or the user has no",
    ),
    (f'{AT}FATAL:  the database system is starting up', "the server is starting up, shutting down or recovering"),
    (f'{AT}FATAL:  the database system is shutting down', "the server is starting up, shutting down or recovering"),
    (
        f'{AT}FATAL:  database "{M}" is not currently accepting connections',
        "the server is starting up, shutting down or recovering",
    ),
    (f"failed to resolve host '{M}': [Errno -2] Name or service not known", "the name of the host cannot be resolved"),
    (f"failed to resolve host '{M}': [Errno -3] Temporary failure in name resolution", "the name of the host cannot"),
    (f'could not translate host name "{M}" to address: No address associated with hostname', "the name of the host"),
    (
        f'{AT}Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?',
        "the host refuses the connection",
    ),
    (f'{AT}Network is unreachable\n\tIs the server running on that host', "the network has no way to the host"),
    (f'{AT}Cannot assign requested address', "the network has no way to the host"),
    (f'{AT}No route to host', "the network has no way to the host"),
    (f'{AT}timeout expired', "there is no answer in time"),
    (f'{AT}Connection timed out', "there is no answer in time"),
    ('connection timeout expired', "there is no answer in time"),
    (
        f'{SOCKET}No such file or directory\n\tIs the server running locally and accepting connections on that socket?',
        "no server listens on the socket",
    ),
    (f'{SOCKET}Permission denied', "this process may not open the server's socket"),
    (f'{AT}server does not support SSL, but SSL was required', "the server has no TLS"),
    (f'{AT}FATAL:  SSL connection is required', "the server takes connections over TLS only"),
    (f'{AT}SSL error: certificate verify failed', "the server's certificate is not valid"),
    (
        f'{AT}server certificate for "*.{M}" does not match host name "{M}"',
        "the server's certificate is not valid",
    ),
    (
        f'{AT}root certificate file "/{M}/root.crt" does not exist\nEither provide the file, use the system\'s trusted '
        "roots with sslrootcert=system, or change sslmode to disable server certificate verification.",
        "the file of root certificates",
    ),
    (f'{AT}could not read root certificate file "{M}": No such file or directory', "the file of root certificates"),
    (f'{AT}private key file "{M}" has group or world access', "the client's certificate or key"),
    (f'{AT}server closed the connection unexpectedly\n\tThis probably means', "the server closed the connection"),
    ("consuming input failed: SSL SYSCALL error: EOF detected", "the server closed the connection"),
    ("the connection is lost", "the server closed the connection"),
    ("the connection is closed", "the server closed the connection"),
    (f'{AT}could not receive data from server: Connection reset by peer', "the server closed the connection"),
    (f'{AT}SSL error: tlsv1 alert protocol version', "no TLS could be agreed on"),
    (f'{AT}received invalid response to SSL negotiation: H', "what answers at this host and port is no Postgres"),
    (f'{AT}expected authentication request from server, but received H', "what answers at this host and port"),
    (f'invalid sslmode value: "{M}"', "a parameter of the address"),
    (f'invalid port number: "{M}"', "a parameter of the address"),
    ("could not match 3 host names with 1 hostaddr values", "a parameter of the address"),
    (f'connection is bad: definition of service "{M}" not found', "the service that the address names"),
    (f'{AT}session is read-only', "no server of the address is what its target_session_attrs asks for"),
    (f'{AT}FATAL:  server login has been failing, try again later (server_login_retry)', "the pooler cannot connect"),
    (f'{AT}FATAL:  unsupported startup parameter: {M}', "the server or pooler does not take what was asked"),
    (f'{AT}FATAL:  password {M} of a kind never heard of', "the connection failed; the reason is withheld"),
    (f'{AT}FATAL:  Passwort-Authentifizierung für Benutzer »{M}« fehlgeschlagen', "the connection failed; the reason"),
    (M, "the connection failed; the reason is withheld"),
    ("", "the connection failed; the reason is withheld"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), TEXTS)
def test_a_failed_connection_is_told_by_its_kind(text: str, told: str) -> None:
    for shown in (
        explain(psycopg.OperationalError(text)),
        explain_statement(psycopg.OperationalError(text)),
    ):
        assert shown.startswith(told)
        assert M not in shown
        assert "\n" not in shown


def test_every_sentence_is_tried() -> None:
    reached = {explain(psycopg.OperationalError(text)) for text, _ in TEXTS}
    assert {reason for _, reason in _BY_TEXT} - reached == set()


def test_of_several_servers_the_one_that_answers_is_told() -> None:
    text = (
        f'connection failed: connection to server at "{M}", port 1 failed: Connection refused\n'
        "Multiple connection attempts failed. All failures were:\n"
        f"- host: '{M}', port: '1', hostaddr: '::1': Connection refused\n"
        f"- host: '{M}', port: '1', hostaddr: '127.0.0.1': FATAL:  password authentication failed for user \"{M}\""
    )
    assert explain(psycopg.OperationalError(text)).startswith(
        "the server refuses the user name or the password"
    )


def test_a_name_that_looks_like_a_reason_does_not_select_one() -> None:
    text = 'connection to server at "password authentication failed", port 1 failed: Connection refused'
    assert explain(psycopg.OperationalError(text)).startswith("the host refuses the connection")


@pytest.mark.parametrize("sqlstate", _BY_SQLSTATE)
def test_an_answer_of_the_server_is_told_by_its_sqlstate(sqlstate: str) -> None:
    error = errors.lookup(sqlstate)(f'permission denied for role "{M}"')
    assert explain(error) == explain_statement(error) == _BY_SQLSTATE[sqlstate]


def test_a_sqlstate_that_is_not_known_is_named() -> None:
    error = errors.UniqueViolation(f"Key (device_token)=({M}) already exists.")
    assert explain(error) == "the server answered with SQLSTATE 23505"


def test_what_has_no_sqlstate_is_told_too() -> None:
    assert explain(PoolTimeout(M)).startswith("no connection came free in time")
    assert explain(TimeoutError(M)).startswith("there is no answer in time")
    assert explain(KeyError(M)) == "a fault of push-listener's own (KeyError)"
    assert explain(None) == "a fault of push-listener's own (NoneType)"


@given(st.text(max_size=80))
def test_whatever_libpq_says_a_sentence_of_ours_is_told(text: str) -> None:
    ours = {reason for _, reason in _BY_TEXT} | {explain(psycopg.OperationalError(""))}
    assert explain(psycopg.OperationalError(text)) in ours
