"""Whether the privileges, policies and settings of a database are as push-listener sets them."""

from __future__ import annotations

import psycopg

from listener.schema.migrate.disk import Migration, MigrationError
from listener.schema.migrate.ledger import Connection

DRIFT = "select finding from push_listener.drift() order by finding"
"""The differences from the intended privileges, policies and settings, in words. Needs the migration "privileges"."""

_APPLY = "select push_listener.apply_privileges()"


def find_drift(conn: Connection) -> list[str]:
    """The differences, in words; none before the migration "privileges" was applied."""
    there = conn.execute("select to_regprocedure('push_listener.drift()') is not null").fetchone()
    if there is None or not there[0]:
        return []
    return [str(finding) for (finding,) in conn.execute(DRIFT).fetchall()]


def apply_privileges(conn: Connection) -> list[str]:
    """Restores the privileges, and returns what differed. Raises MigrationError if some cannot be set."""
    found = find_drift(conn)
    if found:
        try:
            conn.execute(_APPLY)
        except psycopg.Error as error:
            said = [str(error.diag.message_primary or error), error.diag.message_hint or ""]
            raise MigrationError("\n".join(filter(None, said))) from error
    return found


def are_set_by(migration: Migration) -> bool:
    """Whether a migration ends by setting the privileges. Such a migration fails if some cannot be set."""
    return migration.source.rstrip().endswith(f"{_APPLY};")
