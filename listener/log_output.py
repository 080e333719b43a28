"""Writes standard error in a separate thread, so that the process goes on even if nobody reads it."""

from __future__ import annotations

import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable

LIMIT = 1 << 20
"""Bytes of text, at most, that wait to be written: some 5,000 lines."""


class LogOutput(io.RawIOBase):
    """A file descriptor to which writing never blocks.

    Text that the reader does not take waits in memory, up to a limit. Text above the limit is dropped and counted.

    The thread writes to the descriptor directly and holds no lock meanwhile: the interpreter aborts if a thread holds
    the lock of ``sys.stderr`` when the process ends.

    Args:
        fd: where to write.
        limit: bytes that may wait.
        on_recovery: called in the thread, with the number of lines dropped since the last call, once everything that
            waited has been written.
    """

    def __init__(self, fd: int, on_recovery: Callable[[int], object], *, limit: int = LIMIT) -> None:
        super().__init__()
        self._fd = fd
        self._on_recovery = on_recovery
        self._limit = limit
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._size = 0  # bytes that wait or are being written
        self._untold = 0
        self.dropped = 0
        """Lines dropped since the start."""
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, text: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Takes the whole text, and returns at once."""
        piece = bytes(text)
        with self._changed:
            if self._size + len(piece) > self._limit:
                self._drop(piece)
            else:
                self._waiting.append(piece)
                self._size += len(piece)
                self._changed.notify_all()
        return len(piece)

    def drain(self, seconds: float) -> bool:
        """Waits until everything is written, at most for ``seconds``; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._size, seconds)

    def _drop(self, piece: bytes) -> None:
        lines = piece.count(b"\n")
        self.dropped += lines
        self._untold += lines

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                piece = self._waiting.popleft()
            is_written = self._write(piece)
            with self._changed:
                self._size -= len(piece)
                if not is_written:
                    self._drop(piece)
                untold = self._untold if is_written and not self._size else 0
                self._untold -= untold
                self._changed.notify_all()
            if untold:
                self._on_recovery(untold)

    def _write(self, piece: bytes) -> bool:
        rest = memoryview(piece)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # a process that shares the descriptor has set O_NONBLOCK for both
                ready = select.poll()
                ready.register(self._fd, select.POLLOUT)
                ready.poll()
            except OSError:  # nobody reads any more, or the disk is full
                return False
        return True
