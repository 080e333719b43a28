"""pgTAP tests, run by pg_prove as somebody with the Supabase CLI would run them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.support.postgres import Database
from tests.support.tools import lacking, tool

# pgTAP is nothing but SQL: the file of Debian's package serves on servers that have no package of their own.
_PACKAGED = sorted(Path("/usr/share/postgresql").glob("*/extension/pgtap.sql"))


def prove(database: Database, files: Sequence[Path]) -> None:
    """Runs the files, and fails with what pg_prove says when a test in them does."""
    pg_prove = tool("pg_prove")
    _install(database)
    # It hands psql no URI.
    where = {f"PG{key.upper()}": str(value) for key, value in conninfo_to_dict(database.dsn).items()}
    where["PGDATABASE"] = where.pop("PGDBNAME")
    done = subprocess.run(
        [pg_prove, "--norc", *files],
        env={**os.environ, **where},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def _install(database: Database) -> None:
    with psycopg.connect(database.superuser_dsn) as connection:
        if connection.execute("select from pg_available_extensions where name = 'pgtap'").fetchone():
            connection.execute("create extension pgtap with schema extensions")
        elif _PACKAGED:
            connection.execute("set local search_path = extensions")
            connection.execute(_PACKAGED[-1].read_bytes())
        else:
            lacking("pgTAP")
