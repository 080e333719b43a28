"""The two ways in to a database: what holds for one must hold for the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from psycopg.conninfo import make_conninfo

from listener.client import Direct, Rest, Transport
from tests.support import rest
from tests.support.postgres import Database
from tests.support.relay import Relay, relay_to

WAYS = ("direct", "rest")


class Faults(Protocol):
    """What a way can be told to do wrong."""

    def go_away(self) -> None:
        """Every connection is closed, until ``come_back``."""

    def come_back(self) -> None: ...

    def attempts(self) -> int:
        """How many requests or connections were refused while it was away."""

    def lose_answers(self, count: int) -> None:
        """So many of the next calls are carried out, and get no answer."""

    def forget(self) -> None:
        """None of this any more, and no attempt."""


@dataclass
class _RelayFaults:
    relay: Relay

    def go_away(self) -> None:
        self.relay.away = True

    def come_back(self) -> None:
        self.relay.away = False

    def attempts(self) -> int:
        return self.relay.turned_away

    def lose_answers(self, count: int) -> None:
        self.relay.losses = count

    def forget(self) -> None:
        self.relay.away, self.relay.losses, self.relay.turned_away = False, 0, 0


@dataclass
class _RestFaults:
    server: rest.RestServer

    def go_away(self) -> None:
        self.server.away = True

    def come_back(self) -> None:
        self.server.away = False

    def attempts(self) -> int:
        return sum(each.status is None for each in self.server.requests)

    def lose_answers(self, count: int) -> None:
        self.server.faults.extend(["cut"] * count)

    def forget(self) -> None:
        self.server.away = False
        self.server.faults.clear()
        self.server.requests.clear()


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
    faults: Faults
    """Of the way that ``service`` goes."""


@contextmanager
def way(name: str, database: Database) -> Iterator[Way]:
    """A way by its name; see ``WAYS``."""
    if name == "direct":
        with relay_to(database) as relay:
            yield Way(
                name,
                database,
                lambda: Direct(relay.dsn, connect_timeout=5.0),
                lambda user: Direct(_dsn(database, "authenticated", user)),
                lambda: Direct(_dsn(database, "anon", None)),
                lambda: Direct("host=127.0.0.1 port=1 user=nobody dbname=none", connect_timeout=0.5),
                _RelayFaults(relay),
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
            _RestFaults(server),
        )


def _dsn(database: Database, role: str, user: UUID | None) -> str:
    claims = {"role": role} | ({} if user is None else {"sub": str(user)})
    written = json.dumps(claims, separators=(",", ":"))
    return make_conninfo(
        database.dsn_as("authenticator"), options=f"-c role={role} -c request.jwt.claims={written}"
    )
