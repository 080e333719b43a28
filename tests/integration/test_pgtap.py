"""The pgTAP tests of db/tests, run by pg_prove as somebody with the Supabase CLI would run them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from listener import migrate
from tests.support.postgres import Database
from tests.support.tools import lacking, tool

# pgTAP is nothing but SQL: the file of Debian's package serves on servers that have no package of their own.
_PACKAGED = sorted(Path("/usr/share/postgresql").glob("*/extension/pgtap.sql"))


def test_pgtap(database: Database, capfd: pytest.CaptureFixture[str]) -> None:
    pg_prove = tool("pg_prove")
    _install(database)
    files = sorted(migrate.sql_directory("tests").glob("*.test.sql"))
    assert files
    # It hands psql no URI.
    where = {f"PG{key.upper()}": str(value) for key, value in conninfo_to_dict(database.dsn).items()}
    where["PGDATABASE"] = where.pop("PGDBNAME")
    done = subprocess.run([pg_prove, "--norc", *files], env={**os.environ, **where})
    assert done.returncode == 0, "".join(capfd.readouterr())


def _install(database: Database) -> None:
    with psycopg.connect(database.superuser_dsn) as connection:
        if connection.execute("select from pg_available_extensions where name = 'pgtap'").fetchone():
            connection.execute("create extension pgtap with schema extensions")
        elif _PACKAGED:
            connection.execute("set local search_path = extensions")
            connection.execute(_PACKAGED[-1].read_bytes())
        else:
            lacking("pgTAP")
