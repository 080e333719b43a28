"""A migrated database that several tests use one after the other: a copy and its first sessions cost 100 ms each.

For tests that write rows and call functions. One that changes a table, a function, a privilege or a setting has a
database of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import psycopg

from tests.support.postgres import Database, Server, Template

_TABLES = "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname in ('public', 'push_listener')"


@contextmanager
def shared(server: Server) -> Iterator[tuple[Database, Callable[[], None]]]:
    """Such a database, and what empties again the tables that are empty in a new one."""
    with (
        server.database(Template.MIGRATED) as database,
        psycopg.connect(database.dsn, autocommit=True, options="-c lock_timeout=30s") as owner,
    ):

        def filled(tables: Iterable[str]) -> set[str]:
            query = " union all ".join(
                f"select '{name}' where exists (select from {name})" for name in tables
            )
            return {name for (name,) in owner.execute(query.encode())}

        names = {name for (name,) in owner.execute(_TABLES)}
        emptied = names - filled(names)

        def empty() -> None:
            if found := filled(emptied):
                owner.execute(f"truncate {', '.join(sorted(found))} cascade".encode())

        yield database, empty
