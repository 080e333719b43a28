"""Warnings that do not flood a log."""

from __future__ import annotations

import logging
import time

INTERVAL = 60.0
"""Seconds between two lines."""


class Seldom:
    """Logs at most one line a minute. Each line says how many were left out since the one before."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._next = 0.0
        self._left_out = 0

    def warn(self, message: str, *values: object) -> None:
        """Logs a warning, if the last one was long enough ago."""
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        left_out, self._left_out, self._next = self._left_out, 0, now + INTERVAL
        if left_out:
            message += " (%s warnings were left out before this one)"
            values += (left_out,)
        self._log.warning(message, *values)
