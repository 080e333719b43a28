"""What the database knows of the queue, the server and the results: the same for every worker.

It reads no finished rows.
"""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import LiteralString, NamedTuple

import orjson
from psycopg.rows import args_row

from listener.metrics.labels import PRIORITIES
from listener.postgres.connect import Pool
from listener.postgres.statements import load
from listener.postgres.unwritable import UNWRITABLE

BY_INDEX: LiteralString = "set local enable_seqscan = off"
"""Makes the next statement of the transaction read the index of waiting rows. The statistics of the table may be from a
time when most rows waited, and then Postgres would read the whole table."""

# The statistics may also be from a time when hardly any row waited. Then Postgres would sort a million rows on disk to
# count them.
_BY_HASH: LiteralString = "set local enable_sort = off"

DEPTH = load(__file__, "depth")
"""To be executed after BY_INDEX; the columns are the fields of Waiting."""

HOLDERS = load(__file__, "holders")
"""What keeps vacuum from removing dead rows. A role without pg_read_all_stats sees its own sessions only."""

OVERVIEW = load(
    __file__, "overview", depth=DEPTH, unwritable=UNWRITABLE, server=load(__file__, "server", holders=HOLDERS)
)
"""To be executed after BY_INDEX; the columns are the arguments of _overview."""

STATUSES = ("pending", "processing", "failed")
"""The statuses in which a push waits."""


class Waiting(NamedTuple):
    """The waiting rows of one status and priority."""

    status: str
    priority: str
    pushes: int
    due: int
    scheduled: int
    """Those whose time has not come."""
    oldest_due: float | None
    """Seconds for which the row that has waited longest has been due; None when none is due."""


@dataclass(frozen=True, slots=True)
class Depth:
    """What waits in the queue."""

    counts: dict[tuple[str, str], int]
    """Rows by status and priority; all of them are there."""
    due: dict[str, int]
    """Rows that could be claimed now, by priority; those that cannot be written are left out."""
    oldest_due: dict[str, float]
    """Seconds for which the row that has waited longest has been due, by priority; 0 when none is due."""
    scheduled: int
    """Rows that wait for their time: new ones and retries."""

    @classmethod
    def of(cls, rows: Iterable[Waiting]) -> Depth:
        """The sums of what DEPTH returns."""
        counts = {(status, priority): 0 for status in STATUSES for priority in PRIORITIES}
        due, oldest_due = dict.fromkeys(PRIORITIES, 0), dict.fromkeys(PRIORITIES, 0.0)
        scheduled = 0
        for row in rows:
            counts[row.status, row.priority] = row.pushes
            due[row.priority] += row.due
            scheduled += row.scheduled
            oldest_due[row.priority] = max(oldest_due[row.priority], row.oldest_due or 0.0)
        return cls(counts, due, oldest_due, scheduled)

    @property
    def by_status(self) -> dict[str, int]:
        """Rows by status; every status in which a row waits is there."""
        sums = Counter(dict.fromkeys(STATUSES, 0))
        for (status, _), pushes in self.counts.items():
            sums[status] += pushes
        return dict(sums)

    @property
    def waiting(self) -> int:
        """All rows that wait, scheduled ones included."""
        return sum(self.counts.values())


class Day(NamedTuple):
    """How the pushes of one day ended. ``push_listener.daily_counts`` defines what counts."""

    day: datetime.date
    days_ago: int
    """0: today, in UTC."""
    sent: int
    delivered: int
    dead: int
    expired: int
    cancelled: int
    opened: int
    clicked: int
    delivered_timed: int
    """The delivered pushes whose times are known."""
    delivered_seconds: float
    """The seconds from insert to the first receipt, summed over ``delivered_timed``."""


class Ended(NamedTuple):
    """How the pushes with one error code ended today and yesterday, in UTC."""

    error_code: str
    """'' for those without one."""
    sent: int
    dead: int
    expired: int


@dataclass(frozen=True, slots=True)
class Server:
    """The state of the server and of the workers."""

    notify_queue: float
    """The part of the server's NOTIFY queue that is in use, from 0 to 1."""
    workers: int
    """Workers whose liveness locks are held; one with ``WAKEUP=sweep`` holds none."""
    snapshot_age: int | None
    """Transactions since the oldest snapshot that others hold, or since the first write of a transaction that is still
    open; None: the role does not see the sessions of others."""
    clock: float
    """The server's time, in Unix seconds."""


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything that one statement has read."""

    depth: Depth
    server: Server
    days: Sequence[Day] = ()
    unwritable: dict[tuple[str, str], int] = field(default_factory=dict)
    """Rows that are passed over, by statement and code; the most frequent ones."""
    clock_offset: float = 0.0
    """Seconds by which the server's clock is ahead of this machine's."""
    ended: Sequence[Ended] = ()


async def read(pool: Pool) -> Overview:
    """Reads everything in one statement: a worker that has nothing to do asks little. Raises psycopg.Error."""
    async with pool.connection() as conn:
        cursor = conn.cursor(row_factory=args_row(_overview))
        await cursor.execute(f"{BY_INDEX}; {_BY_HASH}; {OVERVIEW}".encode(), prepare=False)
        read_at = time.time()
        cursor.nextset()
        cursor.nextset()
        found = await cursor.fetchone()
    assert found is not None
    return replace(found, clock_offset=found.server.clock - read_at)


def _overview(depth: str, unwritable: str, days: str, ended: str, server: str) -> Overview:
    """Each argument is JSON: an array of rows; ``server`` is one row."""
    return Overview(
        Depth.of(Waiting(**row) for row in orjson.loads(depth)),
        Server(**orjson.loads(server)),
        [Day(**{**row, "day": datetime.date.fromisoformat(row["day"])}) for row in orjson.loads(days)],
        {(row["statement"], row["code"]): row["count"] for row in orjson.loads(unwritable)},
        ended=[Ended(**row) for row in orjson.loads(ended)],
    )
