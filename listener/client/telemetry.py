"""Telemetry that an application can trust: nothing blocks or raises, nothing is stored twice, and losses are counted.

``TelemetryService`` works in a thread of its own, ``AsyncTelemetryService`` in a task of the running event loop.
Both do the same:

- A record waits in a buffer. When 100 wait, and every 10 s, batches are cut and sent.
- A batch keeps its id and its content through all its tries. The database stores an id once, so an answer that was
  lost does no harm.
- What may pass is waited out: the network, 408, 429 and 5xx, SQLSTATE 08, 40, 53 and 57, with pauses of up to 1 s at
  first and of up to 60 s at last, or as long as the other side says. If the caller is refused (401, 403) or the
  function does not exist, the records are kept too, and the next try is a minute later.
- An answer that cannot be read is none: the batch is sent again, under its id.
- A batch that is refused for good is halved until the record at fault is alone. That one is dropped and counted.
- A full buffer drops the oldest record that is in no batch yet, and counts it.
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
    """What both services have in common: the buffer, and a process that may be forked."""

    _has_own_loop: ClassVar[bool] = False
    """Whether the transport is used in another event loop than the application's."""

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
            ValueError: an option is out of range, or the service sends in a loop of its own and the transport has a
                pool or session that belongs to another one.
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
        """Starts empty. In a forked child the thread and the connections are the parent's, and so are its records."""
        self._pid = os.getpid()
        self._buffer = Buffer(self._options.max_buffer)
        self._shipper = Shipper(self._buffer, self._transport, self._options)
        self._wake_asked = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def _check_process(self) -> None:
        # Also where nothing calls what register_at_fork has registered: uwsgi
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
            metadata: an object; what is no JSON in it is written as text. Copied at once.
            timestamp: when it happened; None: now.
            user_id: whose it is. Only a service may name one; a user's records are the user's.

        Returns:
            False if it cannot be stored: the service is closed, the type is empty or too long, or the record is
            larger than 16 KiB.
        """
        try:
            self._check_process()
            record = None if self._closed else encode(type, message, metadata, timestamp, user_id)
        except Exception:  # metadata of the application, whose methods may raise anything
            record = None
        try:
            if record is None:
                self._buffer.refuse(closed=self._closed)
                return False
            self._buffer.put(record)
            self._ensure_started()
            if len(self._buffer) >= self._options.flush_at and not self._wake_asked:
                self._wake_asked = self._tell(self._wake)
        except Exception:  # no thread can be started, say: the record waits
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
        """Has the loop of the shipper call something; False if there is none any more."""
        try:
            if self._loop is None:
                return False
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # it has just been closed
            return False
        return True


class TelemetryService(_Telemetry):
    """Telemetry from any thread, sent by a thread of its own that starts with the first record.

    Safe across fork: a child starts empty, with a thread and connections of its own. When the interpreter ends, what
    waits is sent within 5 s. A process that ends by SIGTERM without a handler, or by ``os._exit``, has to call
    ``close`` before.
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
            # To close it, or to let it be collected, would take the parent's loop its wake-up: both have one epoll.
            _loops_of_parents.append(self._loop)
        super()._reset()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = threading.Event()

    def _ensure_started(self) -> None:
        if self._thread is not None or not self._starting.acquire(blocking=False):
            return  # it runs, or is being started: by another thread, or by what this call interrupts
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
        # A child of multiprocessing ends without atexit.
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
        """The last records, where no thread could be started: the interpreter is ending, say.

        No name is looked up but localhost: here nothing could end that in time. The records of a service that has had
        no thread before, and whose database has a name, are then lost.
        """
        loop = self._loop = _Loop(looks_up=False)
        self._shipper.close()
        loop.call_later(timeout, self._stop)
        with suppress(RuntimeError):  # called in a coroutine: this thread has a running loop
            self._run(loop)


class AsyncTelemetryService(_Telemetry):
    """Telemetry sent by a task of the running event loop.

    The task starts with ``async with``, or with the first record that is logged in the loop; what other threads log is
    sent by it too. If its loop ends before ``close``, the next one that uses the service goes on with what is left.
    Close it before the last loop ends: there is nobody left to send after that.
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
            # Logged by another thread, or while no loop runs: the loop of the service starts it, if it has one.
            if not self._start_asked:
                self._start_asked = self._tell(self._start_as_asked)
            return
        if not self._starting.acquire(blocking=False):
            return  # another thread, or what this call interrupts, is starting it
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
        """Runs something in the loop of the task. Raises RuntimeError if that has ended, or ends meanwhile."""
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
    """A loop without an executor, which refuses to work when the interpreter is ending.

    Looking up a name blocks this loop; its thread has nothing else to do.
    """

    def __init__(self, *, looks_up: bool = True) -> None:
        """Args: looks_up: whether it looks up other names than localhost."""
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
    """At exit. All services together have the time of one."""
    services = [each for each in _all if isinstance(each, TelemetryService) and not each._closed]
    deadline = time.monotonic() + CLOSE_TIMEOUT
    for each in services:
        each._begin_closing()
    for each in services:
        each.close(max(0.0, deadline - time.monotonic()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
atexit.register(_close_all)
