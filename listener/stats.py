"""What ``push-listener stats`` tells: the queue now, and what became of pushes lately."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

_WAITING = """
select status, count(*)
  from public.push_notifications
  where next_attempt_at is not null and status in ('pending', 'processing', 'failed')
  group by status
"""

_OLDEST = """
select coalesce(
    extract(epoch from now())::float8 - extract(epoch from min(greatest(next_attempt_at, created_at)))::float8, 0)
  from public.push_notifications
  where next_attempt_at <= now() and status in ('pending', 'processing', 'failed')
"""

_ENDED = """
select status, coalesce(error_code, ''), count(*)
  from public.push_notifications
  where status in ('sent', 'delivered', 'dead', 'expired', 'cancelled')
    and updated_at > now() - make_interval(days => %(days)s)
  group by 1, 2
  order by 3 desc
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """How many pushes ended in a status, with an error code or without ('')."""

    status: str
    error_code: str
    pushes: int


@dataclass(frozen=True, slots=True)
class Stats:
    """``waiting`` counts pushes by status; ``oldest_due`` is for how many seconds the oldest has been due."""

    waiting: dict[str, int]
    oldest_due: float
    ended: list[Ended]


def read(dsn: str, days: int) -> Stats:
    """Reads them. Raises psycopg.Error."""
    with psycopg.connect(dsn, connect_timeout=10, application_name="push-listener stats") as conn:
        waiting = {str(status): int(count) for status, count in conn.execute(_WAITING)}
        oldest = conn.execute(_OLDEST).fetchone()
        ended = [Ended(str(s), str(c), int(n)) for s, c, n in conn.execute(_ENDED, {"days": days})]
    return Stats(waiting, float(oldest[0]) if oldest else 0.0, ended)
