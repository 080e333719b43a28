"""Faults of the page itself, in the log."""

from __future__ import annotations

import traceback

import structlog

log = structlog.get_logger(__name__)


def tell_fault(route: str, error: Exception) -> None:
    """Logs a fault of the page, without the text of the exception, which may quote a payload."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    log.error(
        "the page has a fault",
        route=route,
        error=type(error).__name__,
        at=f"{where.filename}:{where.lineno}",
    )
