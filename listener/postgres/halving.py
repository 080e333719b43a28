"""Writes many values with few statements, past those that the database refuses.

Each statement stands alone. For the parts of one transaction see parts.py.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import psycopg

from listener.postgres.errors import ROW_FAULTS, is_transient

T = TypeVar("T")

# Transient faults that a single value may cause, by a trigger that runs for it.
_OF_A_VALUE = (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable, TimeoutError)

_MOST_REFUSED = 20


class Halving:
    """Halves the values of a statement that fails, down to one, and doubles them after one that succeeds.

    It remembers the size from one call to the next: a statement that fails because it takes too long is not repeated
    as it was.

    Args:
        most: values in one statement.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = most

    async def write(
        self, values: Sequence[T], write: Callable[[Sequence[T]], Awaitable[None]], seconds: float
    ) -> tuple[list[T], Exception | None]:
        """Writes what can be written; returns the rest, and the last fault.

        It ends early when the database is in trouble, when ``seconds`` have passed, or when so many single values are
        refused that they are hardly the cause. Refused values are at the end of the rest.

        Args:
            values: each is written once.
            write: raises one of ROW_FAULTS, or TimeoutError, if it has not written its values.
            seconds: the time after which no further statement begins.
        """
        until = time.monotonic() + seconds
        refused: list[T] = []
        fault: Exception | None = None
        done = 0
        while done < len(values) and len(refused) < _MOST_REFUSED and time.monotonic() < until:
            part = values[done : done + self._size]
            try:
                await write(part)
            except (*ROW_FAULTS, TimeoutError) as error:
                fault = error
                if is_transient(error) and not isinstance(error, _OF_A_VALUE):
                    break
                self._size = max(1, len(part) // 2)
                if len(part) > 1:
                    continue
                refused += part
            else:
                self._size = min(self._most, 2 * self._size)
            done += len(part)
        return [*values[done:], *refused], fault
