"""How many requests to FCM may be under way at once."""

from __future__ import annotations

import asyncio
from collections import deque


class Places:
    """Places that are taken one by one. A part of them is kept for high priority, which also goes first.

    A free place is taken without a coroutine: two semaphores would cost 5 % of a push.

    Args:
        total: all places.
        normal: the places, at most, that normal priority may have.
    """

    def __init__(self, total: int, normal: int) -> None:
        self._free = total
        self._free_for_normal = normal
        self._waiting_high: deque[asyncio.Future[None]] = deque()
        self._waiting_normal: deque[asyncio.Future[None]] = deque()

    def take(self, *, is_high: bool) -> bool:
        """Takes a free place; False: there is none, and the caller has to ``wait``."""
        # Nobody is overtaken here: if a place is free although others wait, they may not have it.
        if self._free <= 0 or not (is_high or self._free_for_normal > 0):
            return False
        self._free -= 1
        if not is_high:
            self._free_for_normal -= 1
        return True

    async def wait(self, *, is_high: bool) -> None:
        """Takes a place as soon as one is free. If the caller is cancelled, it has none."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._waiting_high if is_high else self._waiting_normal).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the place came at the same moment
                self.give_back(is_high=is_high)
            raise

    def give_back(self, *, is_high: bool) -> None:
        """A place that was taken is free again: it goes to the request whose turn it is."""
        self._free += 1
        if not is_high:
            self._free_for_normal += 1
        if self._waiting_high or self._waiting_normal:
            self._hand_over()

    def _hand_over(self) -> None:
        for waiting, is_high in ((self._waiting_high, True), (self._waiting_normal, False)):
            # A request that was cancelled takes no place.
            while waiting and (waiting[0].done() or self.take(is_high=is_high)):
                turn = waiting.popleft()
                if not turn.done():
                    turn.set_result(None)
