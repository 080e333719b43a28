"""Whether the database answers the dispatcher."""

from __future__ import annotations

import asyncio

import structlog

from listener.backoff import Backoff
from listener.log import should_log
from listener.metrics.own import Metrics
from listener.postgres.errors import Condition, condition, explain, fault_name

log = structlog.get_logger(__name__)


class Reach:
    """Counts looks at the queue that fail in a row, and says how long to wait after each.

    A look is a claim and the statements before the next one.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._backoff = Backoff(0.5, 2.0)
        self._answered = asyncio.Event()
        self.is_up = False
        """Whether the last claim was answered, and no statement has failed since."""
        self.condition = Condition.AWAY
        """Why the last failed look failed."""

    @property
    def is_recovering(self) -> bool:
        """Whether a look has failed since the last one that succeeded: the answer to a claim may have been lost."""
        return self._backoff.failures > 0

    def look_failed(self, error: Exception) -> float:
        """Notes a failed look; returns the seconds to wait."""
        self.note_progress()
        self.is_up, self.condition = False, condition(error)
        seconds = self._backoff.failed()
        self._metrics.database_errors.labels("claim").inc()
        if should_log(self._backoff.failures):
            log.warning(
                "cannot claim", error=fault_name(error), reason=explain(error), tries=self._backoff.failures
            )
        return seconds

    def claim_answered(self, seconds: float) -> None:
        """A claim was answered after ``seconds``, so the database can be reached."""
        self.is_up = True
        self._metrics.statement.observe(seconds, "claim")
        self._metrics.last_look.set_to_current_time()
        self._answered.set()

    def look_succeeded(self) -> None:
        """Every statement of a look was answered: the next failure is the first again."""
        self.note_progress()
        self._backoff.succeeded()

    def note_progress(self) -> None:
        """The dispatcher is not stuck."""
        self._metrics.progress.set_to_current_time()

    async def wait_answered(self) -> None:
        """Returns once the queue has been looked at for the first time."""
        await self._answered.wait()
