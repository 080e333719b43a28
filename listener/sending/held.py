"""The rows that this worker has claimed and not settled yet."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from uuid import UUID

from listener.clock import elapsed
from listener.metrics.own import Metrics
from listener.push import Push, Settlement

# A row's id and attempt. The id is a number here, because the hash of a UUID is a function in Python.
_Row = tuple[int, int]


class HeldRows:
    """The claimed and not yet settled rows. Their number bounds this worker's memory.

    If a claim brings one of them a second time, it is not sent again.

    Args:
        lease: seconds for which a claimed row belongs to this worker.
    """

    def __init__(self, metrics: Metrics, *, lease: float) -> None:
        self._metrics = metrics
        self._lease = lease
        self._claimed_at: dict[_Row, float] = {}  # the oldest first
        self._is_claiming = False
        self._settled_meanwhile: set[_Row] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        metrics.in_flight.set(0)  # the worker before may have been abandoned while it held rows

    def __len__(self) -> int:
        return len(self._claimed_at)

    @property
    def ids(self) -> list[UUID]:
        """The ids of all rows."""
        return [UUID(int=number) for number, _ in self._claimed_at]

    @property
    def near_lease_end(self) -> list[UUID]:
        """Rows whose lease may have ended, or soon ends: this worker must not claim and send them again."""
        before = elapsed() - self._lease / 2
        rows = itertools.takewhile(lambda row: row[1] < before, self._claimed_at.items())
        return [UUID(int=number) for (number, _), _ in rows]

    def claim_begins(self) -> None:
        """A claim begins. The next ``add`` belongs to it, because there is one claim at a time."""
        self._is_claiming = True
        self._settled_meanwhile.clear()

    def add(self, pushes: Sequence[Push], claimed_at: float) -> list[Push]:
        """A claim that began at ``claimed_at`` (see ``clock.elapsed``) has brought these pushes; returns the new ones.

        If Postgres forgets claims in a crash, the next claim brings the same attempts once more. They are under way, or
        have just been settled. See postgres/settlements.py.
        """
        new = []
        for push in pushes:
            row = (push.id.int, push.attempt)
            if row not in self._claimed_at and row not in self._settled_meanwhile:
                self._claimed_at[row] = claimed_at
                new.append(push)
        self._is_claiming = False
        if new:
            self._empty.clear()
        self._metrics.claimed.inc(len(new))
        self._metrics.in_flight.set(len(self))
        return new

    def remove(self, settlements: Iterable[Settlement]) -> None:
        """These rows are settled."""
        for settlement in settlements:
            row = (settlement.push_id.int, settlement.attempt)
            self._claimed_at.pop(row, None)
            if self._is_claiming:
                self._settled_meanwhile.add(row)
        self._metrics.in_flight.set(len(self))
        if not self._claimed_at:
            self._empty.set()

    async def wait_empty(self) -> None:
        """Returns once every row is settled."""
        await self._empty.wait()
