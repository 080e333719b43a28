"""Applications that were there before push-listener: their tables, and databases in which these were adopted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from listener.schema import migrate
from tests.support.postgres import Database, Server

SHAPES = Path(__file__).parent / "shapes"


def load(database: Database, *shapes: str) -> None:
    """Makes the tables of an application, as its owner."""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        for shape in shapes:
            connection.execute((SHAPES / f"{shape}.sql").read_bytes())


@contextmanager
def adopted(server: Server, *shapes: str, steps: int | None = None) -> Iterator[Database]:
    """A database in which these have been adopted, by all migrations or by the first ``steps``."""

    def build(database: Database) -> None:
        load(database, *shapes)
        migrate.apply(database.dsn, migrate.load()[:steps])

    with server.prepared(f"adopted {shapes} {steps}", build) as database:
        yield database
