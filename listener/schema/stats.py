"""What ``push-listener stats`` tells: the queue now, and what became of pushes lately. Neither reads the history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from listener.postgres.queue import BY_INDEX

# Why names have their schema, and columns a cast: see listener/postgres/queue.py.
_WAITING = """
select status, pg_catalog.count(*) as pushes,
    extract(epoch from pg_catalog.now())::float8
      - extract(epoch from pg_catalog.min(greatest(next_attempt_at, created_at))
                           filter (where next_attempt_at <= pg_catalog.now()))::float8 as oldest_due
  from public.push_notifications
  where next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
  group by status
"""

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
    """How many pushes ended dead or expired with an error code, or without ('')."""

    status: str
    error_code: str
    pushes: int


@dataclass(frozen=True, slots=True)
class Stats:
    """The queue now, and the last days in UTC, today included, as ``push_listener.daily_counts`` defines it."""

    waiting: dict[str, int]
    """Pushes by status."""
    oldest_due: float
    """Seconds for which the push that has waited longest has been due; 0 when none is."""
    days: int
    sent: int
    """Accepted by FCM; the delivered ones are among them."""
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
    """The most frequent first."""


def read(dsn: str, days: int) -> Stats:
    """Reads them. Raises psycopg.Error."""
    with psycopg.connect(
        dsn, connect_timeout=10, application_name="push-listener stats", row_factory=dict_row
    ) as conn:
        conn.execute(BY_INDEX)
        waiting = conn.execute(_WAITING).fetchall()
        ended = conn.execute(_ENDED, {"days": days}).fetchall()

    def total(name: str) -> int:
        return sum(row[name] for row in ended)

    def mean(name: str) -> float | None:
        timed = total(f"{name}_timed")
        return total(f"{name}_seconds") / timed if timed else None

    return Stats(
        waiting={row["status"]: row["pushes"] for row in waiting},
        oldest_due=max((row["oldest_due"] or 0.0 for row in waiting), default=0.0),
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
