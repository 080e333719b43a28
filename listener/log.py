"""Log records as key-value events, for people or for machines; the standard library's loggers go the same way."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from collections.abc import Iterator
from typing import Any, Literal

import structlog


def configure(fmt: Literal["text", "json"], level: str) -> None:
    """Sends every record to standard error, as coloured text (on a terminal) or as one JSON object a line."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if fmt == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.ExceptionRenderer(lambda exc_info: without_text(exc_info[1])),
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("listener").setLevel(level.upper())
    silence_drivers()


def silence_drivers() -> None:
    """For every command: psycopg's warnings, its pool's too, quote addresses, and our own records say what matters."""
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)


def without_text(error: BaseException | None) -> str:
    """Where an exception and what led to it were raised; their texts may quote addresses, tokens or rows."""
    return "\n".join(_frames(error)) if error is not None else ""


def _frames(error: BaseException) -> Iterator[str]:
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _frames(cause)
    for frame in traceback.extract_tb(error.__traceback__):
        yield f"  {frame.filename}:{frame.lineno} {frame.name}"
    yield f"{type(error).__name__}"
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _frames(each)


def tell_of_lost_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For ``set_exception_handler``: asyncio's own record, of a task that nobody awaits, say, quotes the exception."""
    where = without_text(context.get("exception"))
    logging.getLogger("listener.loop").error("a fault that nothing handles\n%s", where)


def should_log(times: int) -> bool:
    """Whether to tell of a failure, this many times in a row: ever more rarely, or an hour of it would fill the log."""
    return times & (times - 1) == 0
