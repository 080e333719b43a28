"""Which addresses lead to the same database, and which do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from listener.schema.identity import Identity, address_of, differences

REF = "abcdefghijklmnopqrst"
POOLER = "aws-0-eu-central-1.pooler.supabase.com"


@pytest.mark.parametrize(
    ("dsn", "address"),
    [
        (f"postgresql://postgres:pw@db.{REF}.supabase.co:5432/postgres", f"supabase {REF}"),
        (f"postgresql://postgres:pw@db.{REF}.supabase.co:6543/postgres", f"supabase {REF}"),
        (f"postgresql://postgres:pw@{REF}.supabase.co/postgres", f"supabase {REF}"),
        (f"postgresql://postgres:pw@DB.{REF.upper()}.Supabase.co./postgres", f"supabase {REF}"),
        (f"postgresql://postgres.{REF}:pw@{POOLER}:5432/postgres", f"supabase {REF}"),
        (f"postgresql://postgres.{REF}:pw@{POOLER}:6543/postgres", f"supabase {REF}"),
        (f"postgresql://push.worker.{REF}:pw@{POOLER}:6543/postgres", f"supabase {REF}"),
        (f"postgresql://postgres:pw@{POOLER}/postgres?options=reference%3D{REF}", f"supabase {REF}"),
        (f"postgresql://postgres:pw@{POOLER}/postgres", f"host {POOLER}"),
        ("postgresql://u:pw@localhost/x", "localhost"),
        ("postgresql://u:pw@127.0.0.1:6432/x", "localhost"),
        ("postgresql://u:pw@[::1]/x", "localhost"),
        ("hostaddr=127.0.0.1 user=u", "localhost"),
        ("host=DB.Internal hostaddr=10.0.0.1 port=5433", "host db.internal"),
        ("hostaddr=10.0.0.1", "host 10.0.0.1"),
        ("postgresql://u:pw@b:1,a:2/x", "host a, host b"),
        ("postgresql://u:pw@a:2,b:1/x", "host a, host b"),
        ("host=localhost,127.0.0.1", "localhost"),
        ("host=/var/run/postgresql/ dbname=x", "socket /var/run/postgresql"),
        ("postgresql:///x?host=%2Fvar%2Frun%2Fpostgresql&port=5433", "socket /var/run/postgresql"),
        ("dbname=x", "the default socket"),
        ("service=production", "service production"),
    ],
)
def test_every_way_to_a_database_has_one_address(dsn: str, address: str) -> None:
    assert address_of(dsn) == address


def test_what_libpq_takes_from_the_environment_stands_in() -> None:
    assert address_of("dbname=x", "Db.Example.com") == "host db.example.com"
    assert address_of("host=a dbname=x", "db.example.com") == "host a"
    assert address_of("service=production", "db.example.com") == "service production"


HOSTS = st.sampled_from(
    ["localhost", "10.0.0.1", "a,b", "/tmp", "@x", "", f"db.{REF}.supabase.co", POOLER, f"x{POOLER}"]
)


@given(
    host=HOSTS,
    user=st.sampled_from(["postgres", f"postgres.{REF}", f"owner.{REF}", "x.y.z"]),
    password=st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    port=st.sampled_from(["5432", "6543", "5432,5433"]),
)
def test_no_password_and_no_user_is_in_it(host: str, user: str, password: str, port: str) -> None:
    secret = f"S3cr3t{password}"
    found = address_of(make_conninfo(host=host, user=user, password=secret, port=port, dbname="x"))
    assert found == address_of(make_conninfo(host=host, user=user, dbname="y"))
    assert "S3cr3t" not in found
    assert "postgres." not in found
    assert "owner" not in found


def test_what_differs_is_told_of_the_nearest_identity() -> None:
    served = [Identity("1", 1, "host a"), Identity("2", 2, "host b")]
    assert differences(Identity("2", 2, "host c"), served) == [
        "the address, the server's port or INSTALLATION"
    ]
    assert differences(Identity("1", 3, "host a"), served) == ["the database"]
    assert differences(Identity("3", 2, "host c"), served) == [
        "the database server",
        "the address, the server's port or INSTALLATION",
    ]
