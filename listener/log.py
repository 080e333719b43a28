"""Logging: key-value events for people (text) or machines (json); records of the standard library look the same."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from structlog.typing import Processor


def configure(fmt: Literal["text", "json"], level: str) -> None:
    """Sends every record to standard error, as coloured text (on a terminal) or as one JSON object a line.

    ``level`` is for this package's own records; other packages log warnings and errors.
    """
    import structlog  # slow to import, and only `push-listener run` sets up logging

    add_metadata: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *add_metadata,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    render: Processor
    if fmt == "json":
        render = structlog.processors.JSONRenderer()
    else:
        render = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=add_metadata,  # records that do not come from structlog
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.ExceptionRenderer(lambda exc_info: without_text(exc_info[1])),
            render,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("listener").setLevel(level.upper())
    silence_drivers()


def silence_drivers() -> None:
    """Drops the warnings of psycopg and its pool: they quote addresses, and our own records say what matters."""
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)


def without_text(error: BaseException | None) -> str:
    """The frames and types of an exception and its causes, without their texts, which may quote addresses, tokens or
    rows."""
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


def report_unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs an exception that nothing handled, such as that of a task nobody awaited.

    It takes the place of the loop's own exception handler, whose record quotes the exception's text.
    """
    where = without_text(context.get("exception"))
    logging.getLogger("listener.loop").error("unhandled exception\n%s", where)


def should_log(times: int) -> bool:
    """Whether to log a failure that occurs for the ``times``-th time in a row: the 1st, 2nd, 4th, 8th and so on.

    A failure that repeats for an hour then does not fill the log.
    """
    return times & (times - 1) == 0
