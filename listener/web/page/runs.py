"""The runs that this process performs. A run is one action on all pushes that match a filter."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from uuid import UUID

import psycopg
import structlog

from listener.operating.acting import NotAllowed, Run
from listener.postgres.errors import explain, fault_name
from listener.web.page.faults import tell_fault

log = structlog.get_logger(__name__)

_REMEMBERED = 100
_AT_WORK = 4
_LEAVING_S = 2.0


class TooManyRuns(Exception):
    """This process already performs as many runs as it may at the same time."""

    def __init__(self, most: int) -> None:
        super().__init__(f"{most} actions on many pushes are at work. Wait until one is over, or stop one.")


class Runs:
    """The runs of this process, a few at the same time. The newest runs are remembered after their end."""

    def __init__(self, *, remembered: int = _REMEMBERED, at_work: int = _AT_WORK) -> None:
        self._remembered = remembered
        self._at_work = at_work
        self._runs: dict[UUID, Run] = {}
        self._asked: dict[Hashable, UUID] = {}
        self._faults: dict[UUID, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, run: Run, asked: Hashable) -> UUID:
        """Performs a run in the background; returns its id.

        Args:
            run: the run.
            asked: what a person asked for, and the time of the preview. A second click has the same value; then nothing
                is started, and the id of the first run is returned. If a run ended by a fault, it can be started again.

        Raises TooManyRuns.
        """
        known = self._asked.get(asked)
        if known is not None and known not in self._faults:
            return known
        over = [known for known, each in self._runs.items() if each.progress.is_over]
        if len(self._runs) - len(over) >= self._at_work:
            raise TooManyRuns(self._at_work)
        for forgotten in over[: max(0, len(self._runs) + 1 - self._remembered)]:
            del self._runs[forgotten]
            self._faults.pop(forgotten, None)
        self._asked = {each: known for each, known in self._asked.items() if known in self._runs}
        self._runs[run.id] = run
        self._asked[asked] = run.id
        task = asyncio.create_task(self._perform(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run.id

    def get(self, run: UUID) -> Run | None:
        """A run of this process; None: another process performs it, or it ended long ago."""
        return self._runs.get(run)

    def fault(self, run: UUID) -> str | None:
        """Why a run ended early; None: it did not."""
        return self._faults.get(run)

    def abort(self, run: UUID) -> bool:
        """Ends a run after its current batch; returns False if this process does not perform it."""
        known = self._runs.get(run)
        if known is None or known.progress.is_over:
            return False
        known.abort()
        return True

    def abort_all(self) -> None:
        """Ends every run after its current batch."""
        for run in self._runs.values():
            run.abort()

    async def close(self) -> None:
        """Ends all runs. A batch that takes long is cancelled: its changes and its record are then kept, or neither."""
        self.abort_all()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LEAVING_S)
        for task in self._tasks:
            task.cancel()

    async def _perform(self, run: Run) -> None:
        try:
            await run.perform()
        except NotAllowed as error:
            self._faults[run.id] = str(error)
        except psycopg.Error as error:
            self._faults[run.id] = explain(error)
            log.warning(
                "an action on many pushes has ended early",
                run=str(run.id),
                error=fault_name(error),
                reason=explain(error),
            )
        except Exception as error:
            self._faults[run.id] = (
                "The page has a fault; the log says where. What was changed before stays so."
            )
            tell_fault("a run", error)
