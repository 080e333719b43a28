"""How long the page and the commands wait for the database: every list, search, count and preview, with many pushes.

    python -m tests.benchmarks.searches --rows 1000000

Three databases of one Postgres hold ``--rows`` pushes each: one whose pushes ended one after the other over sixty days,
one whose pushes were all written by one statement, so that all times are the same, and one where all of them wait. In
the last two Postgres has no statistics. Each question is asked three times, and the slowest answer counts; lists are
followed for some pages. Sequential scans of the queue and its log are counted by Postgres; there must be none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import click
import orjson
import psycopg
from rich.table import Table

from listener.demo.embedded import EmbeddedPostgres
from listener.operating.changing import Action
from listener.operating.filters import STATUSES, Filter
from listener.operating.reading import Reading
from listener.postgres.connect import Connection
from tests.benchmarks import rig

T = TypeVar("T")

_TIMES = 3
_PAGES = 10
_BATCHES = 3
_SETTINGS = {
    "fsync": "off",
    "autovacuum": "off",  # it would come at some time, and make statistics that a busy database may lack
    "max_wal_size": "8GB",
    "maintenance_work_mem": "256MB",
}
_PART = 250_000
_HEAVY = UUID(int=1)
"""A user with a tenth of all pushes."""
_LIGHT = UUID(int=1000)
_COMMON, _RARE = "UNREGISTERED", "TITLE_MISSING"

# One in twenty is dead, one in a hundred cancelled; one dead in a thousand has the rare code; one in ten thousand goes
# to a topic.
_ROWS = """
insert into push_notifications (user_id, topic, title, body, data, status, error_code, next_attempt_at,
                                delivery_attempts, claimed_by, fcm_message_id, created_at, updated_at, sent_at)
select case when n %% 10 = 0 then '00000000-0000-0000-0000-000000000001'
            else lpad(to_hex(2 + n %% 50000), 32, '0') end::uuid,
       case when n %% 10000 = 7 then 'news' end,
       'Your ride is here', 'Blue estate car, two minutes away', jsonb_build_object('ride', n::text), status,
       case when n %% 20000 = 1 then 'TITLE_MISSING' when status = 'dead' then 'UNREGISTERED'
            when status = 'expired' then 'EXPIRED' end,
       case when status = 'pending' then at end, 1, 1, 'projects/p/messages/' || n, at, at,
       case when status in ('sent', 'delivered') then at end
  from generate_series(%(first)s::integer, %(last)s::integer) n,
       lateral (select case when %(is_waiting)s then 'pending' when n %% 20 = 1 then 'dead'
                            when n %% 100 = 2 then 'cancelled' when n %% 100 = 3 then 'expired'
                            when n %% 3 = 0 then 'delivered' else 'sent' end as status,
                       case when %(is_spread)s then now() - (1 - n / %(rows)s::float8) * interval '60 days'
                            else %(at)s::timestamptz end as at) x
"""
_LOGS = """
insert into push_delivery_logs (push_id, device_token, status, details, created_at)
select id, 'token', case status when 'dead' then 'failed' else 'sent' end,
       jsonb_build_object('attempt', 1, 'ms', 50, 'message_id', fcm_message_id), updated_at
  from push_notifications
  where status <> 'pending'
"""
_WAITING = """
insert into push_notifications (device_token, title, priority, status, next_attempt_at, claimed_by, error_code)
select 'token', 'Your ride is here', case when n %% 10 = 0 then 'high' else 'normal' end,
       case when n %% 5 = 0 then 'processing' when n %% 5 = 1 then 'failed' else 'pending' end,
       now() + (n - 1000) * interval '1 s', 1, case when n %% 5 = 1 then 'UNAVAILABLE' end
  from generate_series(1, %(waiting)s) n
"""
_SCANS = """
select coalesce(sum(seq_scan), 0)::integer from pg_stat_user_tables
  where schemaname = 'public' and relname in ('push_notifications', 'push_delivery_logs')
"""

LAYOUTS: Mapping[str, Mapping[str, bool]] = {
    "ended one after the other": {"is_spread": True, "is_waiting": False, "is_analyzed": True},
    "written at once": {"is_spread": False, "is_waiting": False, "is_analyzed": False},
    "all waiting": {"is_spread": False, "is_waiting": True, "is_analyzed": False},
}


def fill(dsn: str, rows: int, *, is_spread: bool, is_waiting: bool, is_analyzed: bool) -> None:
    """The pushes, and log rows of those that ended."""
    values = {"rows": rows, "is_spread": is_spread, "is_waiting": is_waiting, "at": datetime.now(UTC)}
    with psycopg.connect(dsn, autocommit=True) as conn:
        tables = (b"push_notifications", b"push_delivery_logs")
        for table in tables:
            conn.execute(b"alter table " + table + b" disable trigger user")
        for first in range(1, rows + 1, _PART):
            conn.execute(_ROWS, {**values, "first": first, "last": min(first + _PART - 1, rows)})
        conn.execute(_LOGS)
        conn.execute(_WAITING, {"waiting": 2000})
        for table in tables:
            conn.execute(b"alter table " + table + b" enable trigger user")
        if is_analyzed:
            conn.execute("vacuum analyze")


class Unanswered(Exception):
    """A question had no answer within two seconds, which is a missed goal."""


class Asking:
    """One database, and how long each question took."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self.seconds: dict[str, float] = {}

    async def everything(self) -> None:
        """Asks all that the page and the commands ask."""
        reading = self._reading
        for _ in range(_TIMES):
            await self._timed("pulse", reading.pulse())
            await self._timed("codes", reading.codes())
            await self._timed("workers", reading.workers())
            await self._timed("actions", reading.actions())
        for name, wanted in filters().items():
            with suppress(Unanswered):
                await self._list(name, wanted)
            with suppress(Unanswered):
                await self._actions(name, wanted)
        page = await reading.pushes(Filter())
        for push in page.lines[:_TIMES]:
            await self._timed("story", reading.story(push.id))

    async def _list(self, name: str, wanted: Filter) -> None:
        reading = self._reading
        for _ in range(_TIMES):
            first = await self._timed(f"list {name}", reading.pushes(wanted))
            await self._timed(f"newer {name}", reading.newer(wanted, first.first))
            await self._timed(f"count {name}", reading.count(wanted))
        after = first.after
        for _ in range(_PAGES):
            if after is None:
                return
            page = await self._timed(
                f"list {name}, further pages", reading.pushes(wanted, after=after, limit=200)
            )
            after = page.after

    async def _actions(self, name: str, wanted: Filter) -> None:
        actions: tuple[Action, ...] = ("requeue", "cancel")
        for what in actions:
            shown = await self._timed(f"preview {what} {name}", self._reading.preview(wanted, what))
            after = None
            for _ in range(_BATCHES):
                ids = self._reading.ids(wanted, what, shown.until, after)
                _, after = await self._timed(f"ids to {what} {name}", ids)
                if after is None:
                    break

    async def _timed(self, what: str, work: Awaitable[T]) -> T:
        started = time.perf_counter()
        try:
            return await work
        except psycopg.errors.QueryCanceled:  # after two seconds: a missed goal, which shows
            raise Unanswered from None
        finally:
            self.seconds[what] = max(self.seconds.get(what, 0.0), time.perf_counter() - started)


def filters() -> dict[str, Filter]:
    """What people search for, by name."""
    now = datetime.now(UTC)
    return {
        "of all": Filter(),
        **{f"of {status}": Filter(status=status) for status in STATUSES},
        "of a user": Filter(user=_LIGHT),
        "of a user with a tenth": Filter(user=_HEAVY),
        "of a user with a tenth, dead": Filter(user=_HEAVY, status="dead"),
        "of an unknown user": Filter(user=UUID(int=1 << 100)),
        "by a common code": Filter(code=_COMMON),
        "by a rare code": Filter(code=_RARE),
        "by an unknown code": Filter(code="NO_SUCH_CODE"),
        "by a user and a rare code": Filter(user=_HEAVY, code=_RARE),
        "sent, by a code": Filter(status="sent", code=_COMMON),
        "to topics": Filter(kind="topic"),
        "dead, to topics": Filter(status="dead", kind="topic"),
        "sent, to conditions": Filter(status="sent", kind="condition"),
        "of an hour a month ago": Filter(
            since=now - timedelta(days=30), until=now - timedelta(days=30, hours=-1)
        ),
        "dead, of an hour a month ago": Filter(
            status="dead", since=now - timedelta(days=30), until=now - timedelta(days=30, hours=-1)
        ),
    }


async def ask(dsn: str) -> tuple[dict[str, float], int]:
    """The slowest seconds of each question, and the sequential scans of the queue and its log."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as watching:
        before = await _scans(watching)
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:

            @asynccontextmanager
            async def connect() -> AsyncIterator[Connection]:
                yield conn

            asking = Asking(Reading(connect))
            await asking.everything()
        return asking.seconds, await _scans(watching) - before


async def _scans(conn: Connection) -> int:
    await conn.execute("select pg_stat_clear_snapshot()")
    row = await (await conn.execute(_SCANS)).fetchone()
    assert row is not None
    return int(row[0])


def measure(rows: int, directory: Path | None) -> dict[str, tuple[dict[str, float], int]]:
    """What ``ask`` found, by layout."""
    found = {}
    for number, (layout, how) in enumerate(LAYOUTS.items()):
        with EmbeddedPostgres(version=rig.POSTGRES, settings=_SETTINGS, temporary_parent=directory) as server:
            started = time.monotonic()
            dsn = rig.new_database(server, f"layout_{number}")
            fill(dsn, rows, **how)
            rig.say(f"searches: {rows:,} rows, {layout}: written in {time.monotonic() - started:.0f} s")
            found[layout] = asyncio.run(ask(dsn))
    return found


@click.command(help=__doc__)
@click.option("--rows", default=1_000_000, show_default=True, type=click.IntRange(1000))
@click.option(
    "--directory", type=click.Path(file_okay=False, exists=True, path_type=Path), help="For the data."
)
@click.option("--json", "as_json", is_flag=True)
def main(rows: int, directory: Path | None, as_json: bool) -> None:
    found = measure(rows, directory)
    if as_json:
        click.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2))
        return
    table = Table("the slowest answer, ms", *LAYOUTS, caption=rig.machine())
    names = dict.fromkeys(name for seconds, _ in found.values() for name in seconds)
    for name in names:
        table.add_row(
            name, *(f"{1e3 * seconds[name]:.0f}" if name in seconds else "" for seconds, _ in found.values())
        )
    table.add_section()
    table.add_row(
        "the slowest of all", *(f"{1e3 * max(seconds.values()):.0f}" for seconds, _ in found.values())
    )
    table.add_row("sequential scans", *(str(scans) for _, scans in found.values()))
    rig.console.print(table)


if __name__ == "__main__":
    main()
