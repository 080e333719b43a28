"""An address behind which the server, the database or the login changes: the service goes on by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from listener.emulator import Emulator
from tests.chaos.proxy import Link, tcp_link, to_unix
from tests.support.postgres import Database, standby_of
from tests.support.service import rows_of, serving, settings_for, until

pytestmark = pytest.mark.newest_postgres


def socket_of(dsn: str) -> Path:
    return Path(str(conninfo_to_dict(dsn)["host"])) / ".s.PGSQL.5432"


@asynccontextmanager
async def movable(dsn: str) -> AsyncIterator[tuple[Link, str]]:
    """An address that a test can lead to another server, as a proxy or a DNS name can."""
    async with tcp_link(to_unix(socket_of(dsn))) as (link, port):
        yield link, make_conninfo(dsn, host="127.0.0.1", port=port)


# --- a server that is read-only -----------------------------------------------------------------------------


async def test_an_address_that_led_to_a_standby_for_a_while_is_served_again(
    database: Database, emulator: Emulator
) -> None:
    """The connections to the standby are open and answer; without being replaced they would last an hour."""
    with standby_of(database.server) as standby:
        async with (
            movable(database.dsn) as (link, dsn),
            serving(settings_for(dsn, emulator)) as service,
            rows_of(database.dsn) as rows,
        ):
            assert (await rows.one_over(await rows.add(device_token="before", title="t")))["status"] == "sent"
            link.lead_to(to_unix(socket_of(standby.uri)))
            link.reset()
            await until(lambda: service.obstacles() and link.connections)
            push = await rows.add(device_token="after", title="t")
            await until(lambda: "the database is read-only" in " ".join(service.obstacles()))
            link.lead_to(to_unix(socket_of(database.dsn)))  # and every connection to the standby stays
            assert (await rows.one_over(push))["status"] == "sent"
            await until(lambda: service.obstacles() == [])
