"""Expires pushes in bulk, so that those past ``expires_at`` neither use up the quota nor delay the others."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

import structlog

from listener.limits.shared_quota import is_late
from listener.metrics.own import Metrics
from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.errors import ROW_FAULTS, fault_name, is_of_rows
from listener.postgres.queue import Queue
from listener.push import Push, Status
from listener.sending.held import HeldRows

log = structlog.get_logger(__name__)

# From this share of expired rows on, a claim has met many. Fewer are settled one by one: a statement that reads a
# thousand rows to find them would cost more.
_MANY = 0.25

_ROWS = 1000
_SHRINK = 8
_REFUSED_WAIT_S = 60.0


class Expiry:
    """Runs its statement only after a claim has met many expired pushes.

    If the statement fails because the application locks a row, or because a trigger refuses a row or is slow, the next
    one reads fewer rows. When even a single row fails, or the statement gets no answer, ``run`` does nothing for a
    while, and claims alone handle such rows.

    Args:
        held: names the rows that this worker still sends although their lease may have ended.
        rows: the most rows of each lane (priority) that one statement reads.
    """

    def __init__(self, queue: Queue, held: HeldRows, metrics: Metrics, *, rows: int = _ROWS) -> None:
        self._queue = queue
        self._held = held
        self._metrics = metrics
        self._most = self._rows = rows
        self._has_met_many = False
        self._not_before = -math.inf

    def claimed(self, pushes: Sequence[Push]) -> None:
        """A claim has brought these pushes."""
        late = sum(is_late(push) for push in pushes if push.expires_in is not None)
        if late and late >= _MANY * len(pushes):
            self._has_met_many = True

    async def run(self) -> None:
        """Call it before each claim. Raises psycopg.Error or TimeoutError when the database does not answer."""
        if not self._has_met_many or time.monotonic() < self._not_before:
            return
        begin = self._queue.frontier.floors()
        try:
            async with asyncio.timeout(STATEMENT_PATIENCE_S):
                expired = await self._queue.expire(self._rows, self._held.near_lease_end, begin)
        except TimeoutError as error:  # a trigger may hang
            self._give_up(error)
            raise
        except ROW_FAULTS as error:
            if not is_of_rows(error):
                raise
            self._failed(error)
            return
        self._has_met_many = expired >= _MANY * self._rows
        self._rows = min(self._most, 2 * self._rows)
        if expired:
            self._metrics.settled.labels(Status.EXPIRED).inc(expired)
            log.info("pushes have expired before they could be sent", rows=expired)

    def _failed(self, error: Exception) -> None:
        self._rows //= _SHRINK
        if not self._rows:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("cannot expire pushes in bulk: they expire one by one", error=fault_name(error))
        self._rows = self._most
        self._has_met_many = False
        self._not_before = time.monotonic() + _REFUSED_WAIT_S
