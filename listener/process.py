"""What belongs to the process as a whole: its event loop, open files, garbage collector and immediate exit."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import threading
from collections.abc import Coroutine
from typing import TypeVar

import structlog

from listener import log
from listener.config import Settings
from listener.fcm.transports.choose import requests_per_connection
from listener.watchdog import main_stack

T = TypeVar("T")

_LAST_WORDS_S = 5.0

_OTHER_FILES = 100
"""Maximum number of files open in addition to the requests to FCM: for Postgres, the web server, name resolution."""


def run(main: Coroutine[None, None, T]) -> T:
    """Runs a coroutine on the fastest event loop there is, and returns its result."""
    factory = None
    with contextlib.suppress(ImportError):  # uvloop does not exist for Windows
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.get_loop().set_exception_handler(log.report_unhandled)
        return runner.run(main)


def make_room_for_requests(settings: Settings) -> int:
    """Raises the limit of open files for MAX_IN_FLIGHT concurrent requests; a connection is an open file.

    As far as the hard limit allows, there is then room for one connection per request, because a server may require
    that. Returns how many requests the limit then allows: MAX_IN_FLIGHT or fewer, and 0 if it allows none.
    """
    wanted = settings.max_in_flight
    connections = _raise_open_files(wanted + _OTHER_FILES) - _OTHER_FILES
    per_connection = requests_per_connection(settings.transport, str(settings.fcm_endpoint))
    return max(0, min(wanted, connections * per_connection))


def _raise_open_files(wanted: int) -> int:
    """Raises the soft limit as far as the hard limit allows; returns how many files may be open then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError):  # macOS has a lower limit that getrlimit does not show
        return soft
    return allowed


def tune_garbage_collector(max_in_flight: int) -> None:
    """Makes collections rare enough for this many concurrent requests. Call it once everything is imported.

    A push under way consists of some hundred objects that the collector counts, and none of them is garbage. With the
    default thresholds the collector examines them, and everything that was loaded at the start, again and again. That
    takes a third of the CPU time while a backlog is sent.
    """
    gc.freeze()
    gc.set_threshold(10_000 + 200 * max_in_flight)


def exit_stuck(what: str) -> None:
    """Ends a process that makes no progress, with exit code 1. Call it in a thread; it never returns."""
    # The timer ends the process even if the log is what is stuck.
    timer = threading.Timer(_LAST_WORDS_S, os._exit, (1,))
    timer.daemon = True
    timer.start()
    structlog.get_logger(__name__).critical(
        "the process is stuck, and ends itself", what=what, at=main_stack()
    )
    log.flush()
    os._exit(1)


def exit_now() -> None:
    """Ends the process without any cleanup, with exit code 0.

    For a shutdown that takes too long: the platform would kill the process next, and other workers take over its rows
    either way.
    """
    log.flush()
    os._exit(0)
