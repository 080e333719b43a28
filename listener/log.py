"""Logging: key-value events for people (text) or machines (json); records of the standard library look the same."""

from __future__ import annotations

import atexit
import io
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from listener.log_output import LogOutput
from listener.log_repeats import WINDOW_S, Repeats

if TYPE_CHECKING:
    import asyncio

    from structlog.typing import Processor

_STDERR = 2

_DRAIN_S = 1.0
"""Seconds, at most, that the process waits at its end until the rest of the log is read."""

_Kind = tuple[str, int, str, str, str]
"""Records that are alike: logger, level, event, and the name and value of the field that tells them apart."""

_sink: _Sink | None = None


def configure(fmt: Literal["text", "json"], level: str) -> None:
    """Sends every record to standard error, as coloured text (on a terminal) or as one JSON object a line.

    From then on a write to ``sys.stderr`` never blocks this process. At its end the process writes what still waits.
    ``level`` is for this package's own records; other packages log warnings and errors.
    """
    global _sink
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
    if _sink is None:
        _sink = _Sink()
        atexit.register(flush)
    sys.stderr = _sink.stream
    handler = logging.StreamHandler(_sink.stream)
    handler.setFormatter(formatter)
    handler.addFilter(_sink)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("listener").setLevel(level.upper())
    silence_drivers()


class _Sink(logging.Filter):
    """Where the log goes. It sums up records that are alike, and writes the others without blocking."""

    def __init__(self) -> None:
        super().__init__()
        self.output = LogOutput(_STDERR, _tell_dropped)
        self.stream = io.TextIOWrapper(
            cast(BinaryIO, self.output),  # it needs no buffer
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
            write_through=True,
        )
        self._repeats: Repeats[_Kind] = Repeats()
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record."""
        kind = _kind(record)
        if kind is None:
            return True
        now = time.monotonic()
        with self._lock:
            ended = self._repeats.take() if self._repeats.ended(now) else []
            is_written = self._repeats.admit(kind, now)
            if not is_written and self._timer is None:
                self._timer = threading.Timer(self._repeats.left(now), self.sum_up)
                self._timer.daemon = True
                self._timer.start()
        _tell_left_out(ended)
        return is_written

    def sum_up(self) -> None:
        """Logs how many records of each kind were left out lately."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            ended = self._repeats.take()
        _tell_left_out(ended)


def _kind(record: logging.LogRecord) -> _Kind | None:
    """What a record has in common with others; None: it is never left out."""
    if not isinstance(record.msg, dict):
        return record.name, record.levelno, str(record.msg), "", ""
    if "left_out" in record.msg or record.levelno < logging.INFO:
        return None
    field = next((name for name in ("code", "error") if name in record.msg), "")
    return record.name, record.levelno, str(record.msg["event"]), field, str(record.msg.get(field, ""))


def _tell_left_out(kinds: list[tuple[_Kind, int]]) -> None:
    import structlog

    for (name, level, event, field, value), count in kinds:
        told = {field: value} if field else {}
        structlog.get_logger(name).log(level, event, **told, left_out=count, within_s=round(WINDOW_S))


def _tell_dropped(lines: int) -> None:
    import structlog

    structlog.get_logger(__name__).warning("log lines dropped: standard error was not read", lines=lines)


def lines_dropped() -> int:
    """Lines of the log that were dropped because nobody read standard error, or because it could not be written."""
    return 0 if _sink is None else _sink.output.dropped


def flush() -> None:
    """Writes the records that wait, for a second at most: perhaps nobody reads standard error."""
    if _sink is not None:
        _sink.sum_up()
        _sink.output.drain(_DRAIN_S)


def silence_drivers() -> None:
    """Drops the warnings of psycopg and its pool: they quote addresses, and our own records say what matters."""
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)


@contextmanager
def silence() -> Iterator[None]:
    """Drops every record of this package within the block, for a command that reports everything in its own output."""
    import structlog

    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


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
    """Logs an exception that nothing handled, such as one in a task that nobody awaited.

    It replaces the loop's own exception handler, whose record quotes the exception's text.
    """
    where = without_text(context.get("exception"))
    logging.getLogger("listener.loop").error("unhandled exception\n%s", where)


def should_log(times: int) -> bool:
    """Whether to log a failure that occurs for the ``times``-th time in a row: the 1st, 2nd, 4th, 8th and so on.

    A failure that repeats for an hour then does not fill the log.
    """
    return times & (times - 1) == 0
