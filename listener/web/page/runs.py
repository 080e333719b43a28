"""The actions on all that match that this process performs."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from listener.operating.acting import Run


class Runs:
    """Runs in this process; the newest ones are remembered after their end."""

    def start(self, run: Run) -> UUID:
        """Performs it in the background; returns its id."""
        raise NotImplementedError

    def get(self, run: UUID) -> Run | None:
        """A run of this process; None: another process performs it, or it ended long ago."""
        raise NotImplementedError

    def fault(self, run: UUID) -> str | None:
        """In words why a run ended before its time; None: it has not."""
        raise NotImplementedError

    def abort(self, run: UUID) -> bool:
        """Ends it after the present batch; returns False if this process does not perform it."""
        raise NotImplementedError
