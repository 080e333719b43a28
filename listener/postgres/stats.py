"""What waits in the queue now, and how pushes ended in the last days. It reads no finished rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import class_row, dict_row

from listener.postgres.connect import ENCODING
from listener.postgres.overview import BY_INDEX, DEPTH, Depth, Waiting

# Why names have their schema, and columns a cast: see statements.py.
_ENDED = """
select error_code, pg_catalog.sum(sent)::bigint as sent,
    pg_catalog.sum(delivered)::bigint as delivered,
    pg_catalog.sum(dead)::bigint as dead,
    pg_catalog.sum(expired)::bigint as expired,
    pg_catalog.sum(cancelled)::bigint as cancelled,
    pg_catalog.sum(opened)::bigint as opened,
    pg_catalog.sum(clicked)::bigint as clicked,
    pg_catalog.sum(retries)::bigint as retries,
    pg_catalog.sum(accepted_timed)::bigint as accepted_timed,
    pg_catalog.sum(accepted_seconds)::float8 as accepted_seconds,
    pg_catalog.sum(delivered_timed)::bigint as delivered_timed,
    pg_catalog.sum(delivered_seconds)::float8 as delivered_seconds
  from push_listener.daily_counts
  where day > (pg_catalog.now() at time zone 'UTC')::date - %(days)s::integer
    and day <= (pg_catalog.now() at time zone 'UTC')::date
  group by error_code
"""


@dataclass(frozen=True, slots=True)
class Failure:
    """The number of pushes that ended dead or expired with an error code, or without one ('')."""

    status: str
    error_code: str
    pushes: int


@dataclass(frozen=True, slots=True)
class Stats:
    """The queue now, and the last days in UTC, today included. ``push_listener.daily_counts`` defines what counts."""

    waiting: dict[str, int]
    """Pushes by status; every status in which a push waits is there."""
    oldest_due: float
    """Seconds for which the push that has waited longest has been due; 0 when none is due."""
    days: int
    sent: int
    """Accepted by FCM, delivered or not."""
    delivered: int
    dead: int
    expired: int
    cancelled: int
    opened: int
    clicked: int
    retries: int
    accepted_after: float | None
    """Mean seconds from insert to acceptance; None when none was accepted."""
    delivered_after: float | None
    """Mean seconds from insert to the first receipt; None when none came."""
    failures: list[Failure]
    """The most frequent code first."""


def read(dsn: str, days: int) -> Stats:
    """Reads the statistics of the last ``days``. Raises psycopg.Error."""
    with psycopg.connect(
        dsn,
        connect_timeout=10,
        application_name="push-listener stats",
        row_factory=dict_row,
        client_encoding=ENCODING,
    ) as conn:
        conn.execute(BY_INDEX)
        depth = Depth.of(conn.cursor(row_factory=class_row(Waiting)).execute(DEPTH))
        ended = conn.execute(_ENDED, {"days": days}).fetchall()

    def total(name: str) -> int:
        return sum(row[name] for row in ended)

    def mean(name: str) -> float | None:
        timed = total(f"{name}_timed")
        return total(f"{name}_seconds") / timed if timed else None

    return Stats(
        waiting={status: pushes for status, pushes in depth.by_status.items() if pushes},
        oldest_due=max(depth.oldest_due.values()),
        days=days,
        sent=total("sent"),
        delivered=total("delivered"),
        dead=total("dead"),
        expired=total("expired"),
        cancelled=total("cancelled"),
        opened=total("opened"),
        clicked=total("clicked"),
        retries=total("retries"),
        accepted_after=mean("accepted"),
        delivered_after=mean("delivered"),
        failures=_failures(ended),
    )


def _failures(ended: list[dict[str, Any]]) -> list[Failure]:
    found = [
        Failure(status, row["error_code"], row[status])
        for row in ended
        for status in ("dead", "expired")
        if row[status]
    ]
    return sorted(found, key=lambda one: (-one.pushes, one.status, one.error_code))
