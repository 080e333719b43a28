"""The two ways in, each before a database of its own: what holds for one must hold for the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from psycopg.conninfo import make_conninfo

from listener.client import Direct, Rest, Transport
from tests.support import rest
from tests.support.postgres import Database

WAYS = ("direct", "rest")


@dataclass(frozen=True)
class Way:
    """One way to a database, as each of its callers."""

    name: str
    database: Database
    service: Callable[[], Transport]
    """As the application's server."""
    user: Callable[[UUID], Transport]
    """As a signed-in user."""
    anon: Callable[[], Transport]
    """As nobody."""
    nowhere: Callable[[], Transport]
    """To where nothing listens."""


@contextmanager
def way(name: str, database: Database) -> Iterator[Way]:
    """A way by its name; see ``WAYS``."""
    if name == "direct":
        yield Way(
            name,
            database,
            lambda: Direct(database.dsn),
            lambda user: Direct(_dsn(database, "authenticated", user)),
            lambda: Direct(_dsn(database, "anon", None)),
            lambda: Direct("host=127.0.0.1 port=1 user=nobody dbname=none", connect_timeout=0.5),
        )
        return
    with rest.serving(database) as server:

        def signed_in(user: UUID) -> Transport:
            async def token() -> str:
                return rest.token("authenticated", str(user))

            return Rest(server.url, rest.PUBLISHABLE_KEY, user_token=token)

        yield Way(
            name,
            database,
            lambda: Rest(server.url, rest.SECRET_KEY),
            signed_in,
            lambda: Rest(server.url, rest.ANON_KEY),
            lambda: Rest("http://127.0.0.1:1", rest.SECRET_KEY),
        )


def _dsn(database: Database, role: str, user: UUID | None) -> str:
    claims = {"role": role} | ({} if user is None else {"sub": str(user)})
    written = json.dumps(claims, separators=(",", ":"))
    return make_conninfo(
        database.dsn_as("authenticator"), options=f"-c role={role} -c request.jwt.claims={written}"
    )
