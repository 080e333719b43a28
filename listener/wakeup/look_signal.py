"""What wakes the dispatcher."""

from __future__ import annotations

import asyncio
import math
import time

from listener.waiting import is_set_within

_NOT_ASLEEP = -math.inf


class LookSignal:
    """Asks the dispatcher to look at the queue, for one of three reasons.

    ``notify`` reports rows that may have come: it always wakes the dispatcher. ``note_capacity`` and ``note_due_in``
    report free capacity and a row that is due again: they wake it only if it waits for that.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._notified = False
        self._waits_for_capacity = False
        self._asleep_until = _NOT_ASLEEP

    def notify(self) -> None:
        """There may be something to claim. A call without a reason costs only a look."""
        self._notified = True
        self._event.set()

    def note_capacity(self) -> None:
        """More may be claimed than before."""
        if self._waits_for_capacity:
            self._event.set()

    def note_due_in(self, seconds: float) -> None:
        """A row of this worker is due again in ``seconds``."""
        if time.monotonic() + seconds < self._asleep_until:
            self._event.set()

    def wake(self) -> None:
        """Wakes the dispatcher for another reason, such as that it is to stop."""
        self._event.set()

    def take(self) -> bool:
        """Clears the signal before a look at the queue; returns whether ``notify`` was called since the last look."""
        self._event.clear()
        notified, self._notified = self._notified, False
        return notified

    def prepare_to_sleep(self) -> None:
        """From now until ``sleep``, ``note_due_in`` wakes the dispatcher for every row.

        The statement that asks when the next row is due may begin before such a row is settled, and so miss the row.
        """
        self._asleep_until = math.inf

    async def sleep(self, seconds: float) -> bool:
        """Waits for ``seconds``, for a notification, or for a row that is due earlier; returns whether one came."""
        self._asleep_until = time.monotonic() + seconds
        woken = await is_set_within(self._event, seconds)
        self._asleep_until = _NOT_ASLEEP
        return woken

    async def wait_for_capacity(self, seconds: float | None) -> None:
        """Waits for capacity or a notification, at most for ``seconds``."""
        self._waits_for_capacity = True
        await is_set_within(self._event, seconds)
        self._waits_for_capacity = False

    async def wait(self, seconds: float) -> bool:
        """Waits for a notification, at most for ``seconds``; returns whether it came."""
        return await is_set_within(self._event, seconds)
