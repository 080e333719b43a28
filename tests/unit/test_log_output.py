"""Writing to standard error never blocks, whether somebody reads it or not."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from listener.log_output import LogOutput

PATIENCE = 30.0


class Pipe:
    """A pipe that takes 4 KiB until somebody reads it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.room = fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)

    def read_until(self, last: bytes) -> bytes:
        """Everything up to a text."""
        read = b""
        while not read.endswith(last):
            read += os.read(self.reader, 65536)
        return read


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for fd in (made.reader, made.writer):
        with suppress(OSError):
            os.close(fd)


class Recovery:
    """Writes a line when it is told of lines that were dropped, as the log does."""

    def __init__(self) -> None:
        self.output: LogOutput | None = None
        self.told: list[int] = []

    def __call__(self, lines: int) -> None:
        self.told.append(lines)
        assert self.output is not None
        self.output.write(b"dropped %d\n" % lines)


def output_to(pipe: Pipe, limit: int = 1 << 20) -> tuple[LogOutput, Recovery]:
    recovery = Recovery()
    recovery.output = LogOutput(pipe.writer, recovery, limit=limit)
    return recovery.output, recovery


def test_lines_come_in_order(pipe: Pipe) -> None:
    output, _ = output_to(pipe)
    lines = [b"line %d\n" % n for n in range(100)]
    for line in lines:
        assert output.write(line) == len(line)
    assert output.drain(PATIENCE)
    assert pipe.read_until(b"line 99\n") == b"".join(lines)


def test_a_pipe_that_nobody_reads_blocks_nobody(pipe: Pipe) -> None:
    output, recovery = output_to(pipe, limit=10_000)
    line = b"x" * 99 + b"\n"
    for _ in range(1000):
        output.write(line)
    assert not output.drain(0.01)
    kept = 1000 - output.dropped
    assert 100 <= kept <= (pipe.room + 10_000) // 100
    told = b"dropped %d\n" % output.dropped
    assert pipe.read_until(told) == line * kept + told
    assert recovery.told == [output.dropped]
    assert output.drain(PATIENCE)


def test_many_threads_lose_nothing_uncounted(pipe: Pipe) -> None:
    output, _ = output_to(pipe, limit=20_000)
    threads = [
        threading.Thread(target=lambda: [output.write(b"%09d\n" % n) for n in range(500)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = pipe.read_until(b"dropped %d\n" % output.dropped)
    assert read.count(b"\n") - 1 + output.dropped == 8 * 500


def test_a_pipe_that_was_made_non_blocking(pipe: Pipe) -> None:
    """O_NONBLOCK belongs to the open file, so each process that shares it can set it."""
    os.set_blocking(pipe.writer, False)
    output, _ = output_to(pipe)
    text = b"".join(b"line %d\n" % n for n in range(5000))
    output.write(text)
    assert pipe.read_until(b"line 4999\n") == text


def test_a_reader_that_is_gone(pipe: Pipe) -> None:
    output, recovery = output_to(pipe)
    os.close(pipe.reader)
    for _ in range(3):
        output.write(b"a\nb\n")
    assert output.drain(PATIENCE)
    assert output.dropped == 6
    assert recovery.told == []


def test_it_is_told_once_a_full_disk_has_room_again(pipe: Pipe) -> None:
    """The output writes to a file that refuses, and then to one that does not."""
    output, recovery = output_to(pipe)
    good = os.dup(pipe.writer)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, pipe.writer)
    output.write(b"lost\n")
    assert output.drain(PATIENCE)
    os.dup2(good, pipe.writer)
    output.write(b"written\n")
    assert pipe.read_until(b"dropped 1\n") == b"written\ndropped 1\n"
    assert recovery.told == [1]
    for fd in (good, full):
        os.close(fd)
