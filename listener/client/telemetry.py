"""Telemetry that an application can trust: nothing blocks or raises, nothing is stored twice, and losses are counted.

``TelemetryService`` works in a thread of its own, ``AsyncTelemetryService`` in a task of the running event loop.
Both do the same:

- A record waits in a buffer. When 100 records wait, and every 10 s, the service cuts batches and sends them.
- A batch keeps its id and its content through all its tries. The database stores each id once, so a lost answer does
  no harm.
- After a temporary failure (the network, 408, 429 and 5xx, SQLSTATE 08, 40, 53 and 57) the batch is sent again. The
  pauses are up to 1 s at first and up to 60 s later, or as long as the other side asks for. If the caller is refused
  (401, 403) or the function does not exist, the records are kept too, and the next try is a minute later.
- An answer that cannot be read counts as no answer: the batch is sent again, under its id.
- A batch that is refused for good is halved until the record at fault is alone. That record is dropped and counted.
- A full buffer drops the oldest record that is not in a batch yet, and counts it.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, ClassVar, Self
from uuid import UUID
from weakref import WeakSet

from listener.client.loops import is_cancelled
from listener.client.telemetry_buffer import Buffer, TelemetryCounts, encode
from listener.client.telemetry_shipper import OnReject, Options, Shipper
from listener.client.transport import Transport

log = logging.getLogger(__name__)

FLUSH_TIMEOUT = 10.0
CLOSE_TIMEOUT = 5.0
_TRANSPORT_CLOSE_TIMEOUT = 0.5


class _Telemetry:
    """What both services have in common: the buffer, and how they survive a fork of the process."""

    _has_own_loop: ClassVar[bool] = False
    """Whether the service uses the transport in an event loop of its own."""

    def __init__(
        self,
        transport: Transport,
        *,
        flush_at: int = Options.flush_at,
        flush_interval: float = Options.flush_interval,
        max_buffer: int = Options.max_buffer,
        timeout: float = Options.timeout,  # of each try
        first_pause: float = Options.first_pause,
        longest_pause: float = Options.longest_pause,
        on_reject: OnReject | None = None,
    ) -> None:
        """Connects nowhere yet. The arguments are those of ``Options``.

        Raises:
            ValueError: an option is out of range; or the service sends in its own loop, and the transport has a pool
                or session that belongs to another loop.
        """
        if self._has_own_loop and getattr(transport, "belongs_to_one_loop", False):
            raise ValueError(
                "this transport has a pool or session of one event loop, and the telemetry thread has another: "
                "give it a Direct(dsn) or Rest(url, key) without them, or use AsyncTelemetryService"
            )
        self._transport = transport
        self._options = Options(
            flush_at=flush_at,
            flush_interval=flush_interval,
            max_buffer=max_buffer,
            timeout=timeout,
            first_pause=first_pause,
            longest_pause=longest_pause,
            on_reject=on_reject,
        )
        self._closed = False
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        """Starts empty. In a forked child, the inherited records, thread and connections belong to the parent."""
        self._pid = os.getpid()
        self._buffer = Buffer(self._options.max_buffer)
        self._shipper = Shipper(self._buffer, self._transport, self._options)
        self._wake_asked = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def _check_process(self) -> None:
        # The id is compared too, because uwsgi forks without calling the functions of register_at_fork
        # (open-telemetry/opentelemetry-python#2266).
        if self._pid != os.getpid():
            self._reset()

    def batch_log(
        self,
        type: str,
        message: str = "",
        *,
        metadata: Mapping[str, Any] | None = None,
        timestamp: datetime | None = None,
        user_id: UUID | str | None = None,
    ) -> bool:
        """Takes a record. Never blocks and never raises; may be called from any thread and in signal handlers.

        Args:
            type: 1 to 100 characters.
            metadata: an object. Values that JSON does not have are written as text. It is copied at once.
            timestamp: when it happened; None: now.
            user_id: the user that the record belongs to. Only a service may name one. Records sent by a user always
                belong to that user.

        Returns:
            False if it cannot be stored: the service is closed, the type is empty or too long, or the record is
            larger than 16 KiB.
        """
        try:
            self._check_process()
            record = None if self._closed else encode(type, message, metadata, timestamp, user_id)
        except Exception:  # the application's metadata may have methods that raise anything
            record = None
        try:
            if record is None:
                self._buffer.refuse(closed=self._closed)
                return False
            self._buffer.put(record)
            self._ensure_started()
            if len(self._buffer) >= self._options.flush_at and not self._wake_asked:
                self._wake_asked = self._tell(self._wake)
        except Exception:  # for example, no thread can be started: the record waits
            log.debug("telemetry: a record was taken, but cannot be sent now", exc_info=True)
        return True

    def counts(self) -> TelemetryCounts:
        """What became of the records of this process so far."""
        self._check_process()
        return self._buffer.counts()

    def _ensure_started(self) -> None:
        raise NotImplementedError

    def _wake(self) -> None:
        self._wake_asked = False
        self._shipper.wake()

    def _tell(self, function: Callable[..., object], *args: object) -> bool:
        """Makes the shipper's loop call a function. Returns False if there is no such loop any more."""
        try:
            if self._loop is None:
                return False
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # it has just been closed
            return False
        return True


class TelemetryService(_Telemetry):
    """Telemetry from any thread, sent by a thread of its own that starts with the first record.

    It survives a fork: a child starts empty, with its own thread and connections. When the interpreter ends, the
    service takes up to 5 s to send the waiting records. A process that ends by SIGTERM without a handler, or by
    ``os._exit``, must call ``close`` first.
    """

    _has_own_loop = True

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:
        """Sends what was logged so far, and waits for that. True if nothing of it waits any more."""
        self._check_process()
        if self._thread is None and len(self._buffer) == 0:
            return True
        done = threading.Event()
        with suppress(RuntimeError):  # no thread can be started
            self._ensure_started()
        if not self._tell(self._shipper.flush, done.set):
            return self.counts().pending == 0
        return done.wait(timeout)

    def close(self, timeout: float = CLOSE_TIMEOUT) -> TelemetryCounts:
        """Takes no more records, sends what waits, and returns after ``timeout`` s at the latest, whatever happens."""
        self._begin_closing()
        if self._thread is None and len(self._buffer):
            self._send_without_thread(timeout)
        elif self._thread not in (None, threading.current_thread()) and not self._ended.wait(timeout):
            self._tell(self._stop)
        return self._buffer.counts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reset(self) -> None:
        if getattr(self, "_loop", None) is not None:
            # The parent's loop and this copy share one epoll. Closing the copy, or letting it be garbage collected,
            # would remove the wake-up of the parent's loop from that epoll.
            _loops_of_parents.append(self._loop)
        super()._reset()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = threading.Event()

    def _ensure_started(self) -> None:
        if self._thread is not None or not self._starting.acquire(blocking=False):
            return  # it runs, or another thread, or the code that this call interrupts, is starting it
        try:
            if self._thread is None:
                self._start()
        finally:
            self._starting.release()

    def _start(self) -> None:
        loop = _Loop()
        thread = threading.Thread(target=self._run, args=(loop,), name="push-telemetry", daemon=True)
        self._loop = loop
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is ending
            self._loop = None
            loop.close()
            raise
        self._thread = thread
        # A child process of multiprocessing does not run atexit functions.
        if multiprocessing := sys.modules.get("multiprocessing.util"):
            multiprocessing.Finalize(None, self.close, exitpriority=0)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        ended = self._ended
        try:
            loop.run_until_complete(self._ship())
        finally:
            ended.set()
            loop.close()

    async def _ship(self) -> None:
        self._task = asyncio.current_task()
        try:
            with suppress(asyncio.CancelledError):
                await self._shipper.run()
        finally:
            with suppress(Exception):
                async with asyncio.timeout(_TRANSPORT_CLOSE_TIMEOUT):
                    await self._transport.close()

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _begin_closing(self) -> None:
        self._check_process()
        self._closed = True
        self._tell(self._shipper.close)

    def _send_without_thread(self, timeout: float) -> None:
        """Sends the last records when no thread can be started, for example because the interpreter is ending.

        It looks up no name but localhost, because nothing could stop a lookup in time here. So if the database has
        another name, and the service never had a thread, its records are lost.
        """
        loop = self._loop = _Loop(looks_up=False)
        self._shipper.close()
        loop.call_later(timeout, self._stop)
        with suppress(RuntimeError):  # called in a coroutine: this thread has a running loop
            self._run(loop)


class AsyncTelemetryService(_Telemetry):
    """Telemetry sent by a task of the running event loop.

    The task starts with ``async with``, or with the first record that is logged in the loop. It also sends what other
    threads log. If its loop ends before ``close``, the next loop that uses the service sends the rest. Close the
    service before the last loop ends, because no loop sends the rest after that.
    """

    async def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:  # noqa: ASYNC109  # returns False
        """Sends what was logged so far, and waits for that. True if nothing of it waits any more."""
        self._check_process()
        if not self._closed:
            self._ensure_started()
        if not self._is_sending():
            return self._buffer.counts().pending == 0
        try:
            async with asyncio.timeout(timeout):
                await self._in_its_loop(self._flushed())
        except (TimeoutError, RuntimeError):  # too late, or its loop has just ended
            return self._buffer.counts().pending == 0
        return True

    async def close(self, timeout: float = CLOSE_TIMEOUT) -> TelemetryCounts:  # noqa: ASYNC109  # returns what is left
        """Takes no more records, sends what waits, and returns after ``timeout`` s. The transport stays open."""
        self._check_process()
        if not self._closed and self._buffer.counts().pending:
            self._ensure_started()
        self._closed = True
        if self._is_sending():
            try:
                async with asyncio.timeout(timeout):
                    await self._in_its_loop(self._ended())
            except (TimeoutError, RuntimeError):  # too late, or its loop has just ended
                self._tell(self._cancel)
        return self._buffer.counts()

    async def __aenter__(self) -> Self:
        self._check_process()
        self._ensure_started()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _reset(self) -> None:
        super()._reset()
        self._task: asyncio.Task[None] | None = None
        self._starting = threading.Lock()
        self._start_asked = False

    def _is_sending(self) -> bool:
        return (
            self._task is not None
            and not self._task.done()
            and self._loop is not None
            and self._loop.is_running()
        )

    def _ensure_started(self) -> None:
        if self._is_sending():
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # Another thread has logged, or no loop runs. The service's loop starts the task, if there is such a loop.
            if not self._start_asked:
                self._start_asked = self._tell(self._start_as_asked)
            return
        if not self._starting.acquire(blocking=False):
            return  # another thread, or the code that this call interrupts, is starting it
        try:
            if not self._is_sending():
                self._start(loop)
        finally:
            self._starting.release()

    def _start_as_asked(self) -> None:
        self._start_asked = False
        self._ensure_started()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._task is not None:  # its loop has ended, or does not run, or has cancelled it
            with suppress(RuntimeError):
                self._task.cancel()
            self._shipper = self._shipper.successor()
            self._wake_asked = self._start_asked = False
        self._loop = loop
        self._task = loop.create_task(self._shipper.run(), name="push-telemetry")

    async def _in_its_loop(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine in the loop of the task. Raises RuntimeError if that loop has ended, or ends meanwhile."""
        if self._loop is None or self._loop is asyncio.get_running_loop():
            await work
            return
        try:
            there = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise
        try:
            await asyncio.wrap_future(there)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise RuntimeError("the event loop of the service has ended") from None

    async def _flushed(self) -> None:
        done = asyncio.Event()
        self._shipper.flush(done.set)
        await done.wait()

    async def _ended(self) -> None:
        self._shipper.close()
        if self._task is not None:
            await asyncio.wait({self._task})

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class _Loop(asyncio.SelectorEventLoop):
    """A loop without an executor, because an executor refuses to work when the interpreter is ending.

    Looking up a name blocks this loop. That does no harm, because its thread has nothing else to do.
    """

    def __init__(self, *, looks_up: bool = True) -> None:
        """Args: looks_up: whether the loop looks up names other than localhost."""
        super().__init__()
        self._looks_up = looks_up

    async def getaddrinfo(self, host: Any, port: Any, **rest: Any) -> Any:
        if not self._looks_up and host != "localhost":
            raise socket.gaierror("no thread can be started to look up a name")
        return await super().getaddrinfo(host, port, **rest)

    def run_in_executor(  # type: ignore[override]  # its type variables add nothing here
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


_all: WeakSet[_Telemetry] = WeakSet()
_loops_of_parents: list[object] = []


def _reset_all() -> None:
    for each in list(_all):
        each._reset()


def _close_all() -> None:
    """Closes all services at exit. All together have as much time as one service has."""
    services = [each for each in _all if isinstance(each, TelemetryService) and not each._closed]
    deadline = time.monotonic() + CLOSE_TIMEOUT
    for each in services:
        each._begin_closing()
    for each in services:
        each.close(max(0.0, deadline - time.monotonic()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
atexit.register(_close_all)
