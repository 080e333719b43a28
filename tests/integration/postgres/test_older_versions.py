"""Our SQL calls nothing that the oldest Postgres does not have, in branches that seldom run either.

Postgres looks at the syntax of a function's body when the function is made, as on the oldest version it is for every
test. It looks for the functions and columns that the body names only when a branch runs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.postgres import Server

PROJECT = Path(__file__).resolve().parents[3]

_NAMES = """
select proname::text || '(' from pg_proc where pronamespace = 'pg_catalog'::regnamespace
union
select relname::text from pg_class where relnamespace = 'pg_catalog'::regnamespace and relkind in ('r', 'v')
union
select a.attname::text
  from pg_attribute a join pg_class c on c.oid = a.attrelid
  where c.relnamespace = 'pg_catalog'::regnamespace and c.relkind in ('r', 'v') and a.attnum > 0
    and a.attname like '%\\_%'  -- one that is a plain word, such as "path", cannot be told from a column of ours
"""


def names(server: Server) -> set[str]:
    """What the server's own SQL can be called by; a function's name ends with a parenthesis."""
    with psycopg.connect(server.uri) as connection:
        return {name for (name,) in connection.execute(_NAMES)}


def newer_names_in(text: str, newer: set[str]) -> set[str]:
    words = {word.replace(" ", "") for word in re.findall(r"\b[a-z]\w* *\(?", text)}
    return newer & (words | {word.rstrip("(") for word in words})


def our_sql() -> Iterator[tuple[Path, str]]:
    for room in ("db", "listener"):
        for path in sorted((PROJECT / room).rglob("*.sql")):
            yield path, re.sub(r"--[^\n]*", "", path.read_text())
    for path in sorted((PROJECT / "listener").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "select " in node.value:
                yield path, node.value


@pytest.fixture
def newer(postgres: Server, oldest_server: Server) -> set[str]:
    """What the newest of the chosen versions has, and the oldest has not."""
    postgres.start()
    oldest_server.start()
    return names(postgres) - names(oldest_server)


def test_nothing_is_called_that_the_oldest_version_does_not_have(newer: set[str]) -> None:
    used = [
        f"{path.relative_to(PROJECT)}: {name}"
        for path, text in our_sql()
        for name in newer_names_in(text, newer)
    ]
    assert used == []


def test_a_newer_name_is_found(newer: set[str]) -> None:
    if not newer:  # one version is chosen
        newer = {"any_value(", "inherit_option", "pg_stat_io"}
    text = "select any_value (a.x), m.inherit_option from pg_auth_members m, pg_stat_io where any_values > 1"
    assert newer_names_in(text, newer) == {"any_value(", "inherit_option", "pg_stat_io"}
