"""Addresses of Postgres: what is refused because it may be read in two ways, and what stays allowed."""

from __future__ import annotations

from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from listener.postgres.address import checked

AT = "has an @ in its user name or password: write it as %40"
SLASH = "has a / in its user name or password: write it as %2F"
QUESTION = (
    "has a ? before an @: write ? as %3F, / as %2F and @ as %40 in a user name or password, and @ as %40 in a "
    "parameter"
)
PERCENT = "has a % that no two hexadecimal digits follow: write it as %25"
SPACE = "has a space or an invisible character: write a space as %20, others likewise, or remove it"
HOST = (
    "has a host that is neither a name nor an IP address nor the directory of a socket: if that is a part of the "
    "password, write @ as %40, / as %2F and : as %3A in it"
)
PORT = "has a port that is no number from 1 to 65535"
PORTS = "has more or fewer ports than hosts"
UNREADABLE = (
    "is not a Postgres address (postgresql://user:password@host:port/database), or has a parameter that libpq does "
    "not know: remove what stands behind the ?"
)
PLACEHOLDER = "still has a placeholder where the password belongs"
EMPTY = "is empty"
NO_VERIFY = "has sslmode=no-verify, which libpq does not know: write sslmode=require"
SCHEMA = (
    "has a parameter schema, as Prisma writes it: remove it, because push-listener's tables are in public"
)
JDBC = "is an address for JDBC: write postgresql://user:password@host:port/database"
PRISMA = "is the address of a proxy of Prisma: set it to that of the database itself"
API = "is the address of an API: set it to the connection string (on Supabase: Connect)"
WORDING = (AT, SLASH, QUESTION, PERCENT, SPACE, HOST, PORT, PORTS, UNREADABLE, PLACEHOLDER, EMPTY)


def faults_of(address: str) -> list[str]:
    try:
        checked(address)
    except ValueError as refused:
        return str(refused).split("; ")
    return []


@pytest.mark.parametrize(
    ("address", "faults"),
    [
        ("postgresql://u:S3cr@tTail99@host/db", [AT]),
        ("postgres://u@x:pass@host/db", [AT]),
        ("postgresql://u:pa/ss@h/db", [SLASH]),
        ("postgresql://u:12/34@h/db", [SLASH]),
        ("postgresql://u:12/3@4@h/db", [AT, SLASH]),
        ("postgresql://u:p@h/d@b", [AT, SLASH]),
        ("postgresql://u:pa?ss@h/db", [QUESTION]),
        ("postgresql://u:1?x=y@h", [QUESTION]),
        ("postgresql://u:1/2?user=x@h/db", [QUESTION]),
        ("postgresql://u:p@h/db?application_name=a@b", [QUESTION]),
        ("postgresql://h/db?password=p@ss", [QUESTION]),
        ("postgresql://u:pa%ss@h/db", [PERCENT]),
        ("postgresql://u:pass%@h/db", [PERCENT]),
        ("postgresql://u:pa@%s@h/db", [AT, PERCENT]),
        ("postgresql://u: pass@h/db", [SPACE]),
        ("postgresql://u:pa\tss@h/db", [SPACE]),
        ("postgresql://u:p@h\u200b/db", [SPACE]),
        ("postgresql://u:p@h#x/db", [HOST]),
        ("postgresql://u:p@h&x=y", [HOST]),
        ("postgresql://u:p@h%40x/db", [HOST]),
        ("postgresql://u:p@[zz::1]/db", [HOST]),
        ("postgresql://u:p@h1,a b/db", [SPACE]),
        ("host=tTail99@host dbname=db", [HOST]),
        ("host=h:5432 dbname=db", [HOST]),
        ("postgresql://u:S3cr3t/db", [PORT]),
        ("postgresql://u:p@h:0/db", [PORT]),
        ("postgresql://u:p@h:65536/db", [PORT]),
        ("postgresql://u:p@h:²/db", [PORT]),
        ("host=a,b,c port=1,2", [PORTS]),
        ("postgresql://u:p@h#x:y/db", [HOST, PORT]),
        ("postgresql://u:p@[::1/db", [UNREADABLE]),
        ("postgresql://u:p@h/db?S3cr3t=1", [UNREADABLE]),
        ("postgresql://u:p@h/db?sslmode=no-verify", [NO_VERIFY]),
        ("postgresql://u:p@h/db?schema=app", [SCHEMA]),
        ("postgresql://postgres:[YOUR-PASSWORD]@db.x.supabase.co:5432/postgres", [PLACEHOLDER]),
        ("postgresql://postgres:<password>@db.x.supabase.co:5432/postgres", [PLACEHOLDER]),
        ("jdbc:postgresql://h/db?user=u&password=p", [JDBC]),
        ("prisma+postgres://accelerate.prisma-data.net/?api_key=S3cr3t", [PRISMA]),
        ("https://x.supabase.co", [API]),
        ("postgresql://u:%00@h/db", [UNREADABLE]),
        ("mysql://u:p@h/db", [UNREADABLE]),
        ("postgresql://", [EMPTY]),
    ],
)
def test_what_can_be_read_in_two_ways_or_in_none_is_refused(address: str, faults: list[str]) -> None:
    assert faults_of(address) == faults


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("postgresql://u:S3cr%40tTail99@host/db", {"password": "S3cr@tTail99", "host": "host"}),
        ("postgresql://u:%2F%3F%25%20@h/db?sslmode=require", {"password": "/?% ", "sslmode": "require"}),
        ("postgresql://u:p#[]\\'\"{}|^`<>;,&=+$!*()~:x@h/db", {"password": "p#[]\\'\"{}|^`<>;,&=+$!*()~:x"}),
        ("postgresql://u:pässwörd@h/db", {"password": "pässwörd"}),
        ("postgresql://postgres.ref:p@aws-0-eu.pooler.supabase.com:6543/postgres", {"user": "postgres.ref"}),
        ("postgresql://u:p@[2001:db8::1]:5433/db", {"host": "2001:db8::1", "port": "5433"}),
        ("postgresql://u:p@[fe80::1%25eth0]/db", {"host": "fe80::1%eth0"}),
        ("postgresql://u:p@h1:1,h2:2/db", {"host": "h1,h2", "port": "1,2"}),
        ("postgresql://u:p@h1,h2/db", {"host": "h1,h2"}),
        ("postgresql://u:p@h1:5433,h2/db?target_session_attrs=any", {"host": "h1,h2"}),
        ("postgresql://u@/db?host=/var/run/postgresql", {"host": "/var/run/postgresql"}),
        ("postgresql://u@%2Fvar%2Frun%2Fpostgresql/db", {"host": "/var/run/postgresql"}),
        ("postgresql://u@/db?host=%40abstract", {"host": "@abstract"}),
        ("postgresql:///db", {"dbname": "db"}),
        ("postgresql://u:p@my_host.internal./db", {"host": "my_host.internal."}),
        ("host=h user=u password='p@ s/s?#%' dbname=db", {"password": "p@ s/s?#%", "host": "h"}),
        (r"host=h password='p\'@\\'", {"password": r"p'@" + "\\"}),
        ("host=::1 dbname=db", {"host": "::1"}),
        ("host='/var/my run' dbname=db", {"host": "/var/my run"}),
        ("service=mine", {"service": "mine"}),
        ("postgresql://u:p@h/db?options=-c%20search_path%3Dx", {"options": "-c search_path=x"}),
        ("postgresql://u:p@h/db?ssl=true", {"sslmode": "require"}),
        ("postgresql+psycopg://u:p@h/db", {"host": "h", "dbname": "db", "password": "p"}),
        ("postgres+asyncpg://u:p@h/db?prepared_statement_cache_size=0", {"host": "h", "dbname": "db"}),
        ("postgresql://u:p@h/db?pgbouncer=true", {"dbname": "db"}),
        ("postgresql://u:p@h/db?pgbouncer=true&connection_limit=1&schema=public", {"dbname": "db"}),
        ("postgresql://u:p@h/db?sslmode=require&supa=base-pooler.x", {"sslmode": "require"}),
        ("postgresql://u:p@h/db?pgbouncer=true&sslmode=require", {"sslmode": "require"}),
        ("postgresql://u:p@h/db?", {"dbname": "db"}),
    ],
)
def test_what_says_what_it_is_stays_allowed(address: str, parts: dict[str, str]) -> None:
    found = conninfo_to_dict(checked(address))
    assert {name: found.get(name) for name in parts} == parts


def test_the_line_end_of_a_file_does_not_become_part_of_the_database() -> None:
    assert checked(" postgresql://u:p@h/db\r\n") == "postgresql://u:p@h/db"


def grams(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(len(text) - 2)}


printable = st.characters(codec="utf-8", exclude_categories=["C"])
# What could make a password look like the other parts of an address, beside anything that can be typed.
tempting = st.sampled_from(
    [*"@/?#:%[]=&, \\'\"", "%4", "%41", "5432", "@h:1/d", "/d?user=x", "?host=", "&password=", "@[::1]"]
)
passwords = st.one_of(
    st.text(printable, min_size=1, max_size=40),
    st.text(st.sampled_from("ab1@/?#:%[]=&, \\'\""), min_size=1, max_size=15),
    st.lists(st.one_of(tempting, st.text(printable, max_size=4)), min_size=1, max_size=6)
    .map("".join)
    .filter(bool),
)


@given(passwords, st.sampled_from(["", ":5432", ":1,other:2"]), st.sampled_from(["", "?sslmode=require"]))
@example("S3cr@tTail99", "", "")
@example("12/34", "", "")
@example("1?x=y", "", "")
@example("p@h/db?application_name=a", "", "")
@example("1/2?application_name=x", ":5432", "?sslmode=require")
def test_a_raw_password_is_taken_as_it_is_or_refused_without_a_word_of_it(
    password: str, port: str, query: str
) -> None:
    """Where it is taken, percent-encoding alone is not as it is: libpq decodes %41 wherever it stands."""
    address = f"postgresql://user:{password}@host{port}/db{query}"
    told = faults_of(address)
    assert set(told) <= set(WORDING)
    fixed = set().union(*map(grams, WORDING))
    assert not (grams(password) & set().union(*map(grams, told))) - fixed
    if not told:
        found = conninfo_to_dict(address)
        assert found["password"] == unquote(password, errors="strict")
        assert (found["user"], found["dbname"]) == ("user", "db")
        assert found["host"] == ("host,other" if "other" in port else "host")
        assert found.get("sslmode") == ("require" if query else None)


@given(passwords)
def test_an_encoded_password_is_always_taken(password: str) -> None:
    found = conninfo_to_dict(
        checked(f"postgresql://{quote(password, safe='')}:{quote(password, safe='')}@host/db")
    )
    assert (found["user"], found["password"], found["host"]) == (password, password, "host")
