"""Processes of push-listener that start at once: forks of one process that has imported all of it.

To start ``push-listener run`` takes a second of CPU time, nearly all of it for imports. A fork is a process like any
other: with its own environment, output, signals and random numbers. But it tries nothing of the start itself.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import orjson

_PROJECT = Path(__file__).resolve().parents[2]
_LONGEST_REQUEST = 1 << 18

# The command itself, and what it imports later, when it works.
_IMPORTED = (
    "listener.cli.run",
    "listener.cli.serve",
    "listener.__main__",
    "listener.fcm.transports.direct",
    "listener.fcm.transports.aiohttp",
    "google.auth.transport.requests",
    "google.oauth2.service_account",
    "uvloop",
)

_mother: socket.socket | None = None


class Forked:
    """What ``asyncio.subprocess.Process`` is, as far as the tests need it."""

    def __init__(
        self, pid: int, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader, end: socket.socket
    ) -> None:
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self._waiting = asyncio.create_task(self._wait(end))

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        return await asyncio.shield(self._waiting)

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def _wait(self, end: socket.socket) -> int:
        with end:
            self.returncode = int(await asyncio.get_running_loop().sock_recv(end, 64) or b"-9")
        return self.returncode


async def start(arguments: Sequence[str], env: Mapping[str, str]) -> Forked:
    """``python ARGUMENTS``, which begin with ``-m MODULE`` or ``-c CODE``, in this project's directory."""
    # Not a stream: the process may have ended before its id is read, and then the process id and the exit code would be
    # read as one number.
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    try:
        request = orjson.dumps({"arguments": list(arguments), "env": dict(env)})
        socket.send_fds(_started(), [request], [out_end, err_end, theirs.fileno()])
    finally:
        theirs.close()
        os.close(out_end)
        os.close(err_end)
    ours.setblocking(False)
    pid = int(await asyncio.get_running_loop().sock_recv(ours, 64))
    return Forked(pid, await _reader(out), await _reader(err), ours)


async def _reader(fd: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0)
    )
    return reader


def _started() -> socket.socket:
    """The connection to the process that forks; it is started once, and ends with this one."""
    global _mother
    if _mother is None:
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _LONGEST_REQUEST)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                cwd=_PROJECT,
                env={"PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "/")},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        _mother = ours
        atexit.register(process.wait)
        atexit.register(ours.close)
    return _mother


# --- In the process that forks ------------------------------------------------------------------------------------


def _serve(requests: socket.socket) -> dict[str, Any] | None:
    """Forks one process for each request. Returns the request in the forked one, and None at the end in this one."""
    ends: dict[int, socket.socket] = {}
    wakes, woken = socket.socketpair()
    for each in (wakes, woken):
        each.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is woken:
                    woken.recv(4096)
                    _tell_ends(ends)
                    continue
                message, fds, _flags, _address = socket.recv_fds(requests, _LONGEST_REQUEST, 3)
                if not message:
                    return None
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.dup2(fds[0], 1)
                    os.dup2(fds[1], 2)
                    for other in (*fds, requests.fileno(), *(end.fileno() for end in ends.values())):
                        os.close(other)
                    wakes.close()
                    woken.close()
                    return orjson.loads(message)  # type: ignore[no-any-return]
                os.close(fds[0])
                os.close(fds[1])
                ends[pid] = socket.socket(fileno=fds[2])
                with suppress(BrokenPipeError):  # a test that was cancelled waits for it no more
                    ends[pid].send(b"%d" % pid)


def _tell_ends(ends: dict[int, socket.socket]) -> None:
    while ends:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with ends.pop(pid) as end, suppress(BrokenPipeError):  # nobody waits for it any more
            end.send(b"%d" % os.waitstatus_to_exitcode(status))


def _run(request: dict[str, Any]) -> None:
    """Does what the interpreter does with these arguments."""
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    kind, what, *rest = request["arguments"]
    sys.argv = [kind, *rest]
    if kind == "-m":
        del sys.modules[f"{what}.__main__"]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(what, "<string>", "exec"), vars(main))


def _main() -> None:
    for name in _IMPORTED:
        import_module(name)
    gc.freeze()  # so that collections in the forked processes do not write to all that memory
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        request = _serve(requests)
        if request is not None:
            requests.detach()
    if request is not None:
        gc.unfreeze()
        _run(request)


if __name__ == "__main__":
    _main()
