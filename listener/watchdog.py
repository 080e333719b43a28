"""Measures how late the event loop is, and ends a stuck process: a platform restarts only a process that has ended."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path

import structlog

from listener.metrics.own import Metrics

log = structlog.get_logger(__name__)

_TICK_S = 0.5
_REMEMBERED_S = 30.0

# After this many checks in a row without a change the process is stuck.
_CHECKS = 10

_FRAMES = 6


class Watchdog:
    """Watches the event loop from inside and from a thread.

    Args:
        timeout: seconds without a turn of the loop, or without progress of the worker, after which the process is
            stuck; 0: the watchdog only measures how late the loop is.
        on_stuck: ends the process. It is called in a thread, with the name of the part that stands still.
        tick: seconds between two measurements.
    """

    def __init__(
        self, metrics: Metrics, *, timeout: float, on_stuck: Callable[[str], None], tick: float = _TICK_S
    ) -> None:
        self._metrics = metrics
        self._timeout = timeout
        self._on_stuck = on_stuck
        self._tick = tick
        self._turns = 0
        self._late: deque[tuple[float, float]] = deque()  # (when, seconds)
        self._ended = threading.Event()
        # What the last check saw, and how many checks in a row saw the same.
        self._seen_turns, self._seen_progress = -1, -1.0
        self._still_loop = self._still_worker = 0

    async def run(self) -> None:
        """Works until cancelled."""
        if self._timeout:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        try:
            while True:
                due = time.monotonic() + self._tick
                await asyncio.sleep(self._tick)
                now = time.monotonic()
                self._turns += 1
                self._metrics.loop_lag.set(self._longest(max(0.0, now - due), now))
        finally:
            self._ended.set()

    def _longest(self, late: float, now: float) -> float:
        """Notes a delay; returns the longest of the last half minute. It forgets delays that a longer one follows."""
        while self._late and self._late[-1][1] <= late:
            self._late.pop()
        self._late.append((now, late))
        while self._late[0][0] < now - _REMEMBERED_S:
            self._late.popleft()
        return self._late[0][1]

    def _watch(self) -> None:
        while not self._ended.wait(self._timeout / _CHECKS):
            stuck = self._check()
            if stuck is not None:
                self._on_stuck(stuck)

    def _check(self) -> str | None:
        """Counts checks in a row that saw no change; returns the part that is stuck.

        It does not measure seconds, because a process that was stopped (SIGSTOP, a frozen machine) would count the time
        in which it could not run.
        """
        turns, at = self._turns, self._metrics.progress.at
        self._still_loop = self._still_loop + 1 if turns == self._seen_turns else 0
        self._still_worker = self._still_worker + 1 if at is not None and at == self._seen_progress else 0
        self._seen_turns, self._seen_progress = turns, -1.0 if at is None else at
        if self._still_loop >= _CHECKS:
            return "the event loop"
        return "the worker" if self._still_worker >= _CHECKS else None


def main_stack() -> list[str]:
    """Where the main thread is: file, line and function of its innermost frames, the innermost last."""
    main = threading.main_thread().ident
    frame = sys._current_frames().get(main) if main is not None else None
    found = traceback.extract_stack(frame)[-_FRAMES:] if frame is not None else []
    return [f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in found]
