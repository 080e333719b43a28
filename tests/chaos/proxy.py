"""A network that can be broken: a proxy for one client's connections, over TCP or a unix socket."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import cast

Dial = Callable[[Callable[[], asyncio.Protocol]], Awaitable[asyncio.Transport]]
"""Opens a connection to the server for a protocol."""


class Link:
    """All connections of one client to one server.

    A *hole* swallows whatever is sent and acknowledges it, as a middlebox does: no side's kernel notices anything. When
    it ends, what was held back arrives, except from a side that has hung up meanwhile; or, with ``forget``, the
    connections are reset, as by a firewall that has lost its state.
    """

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._open = asyncio.Event()
        self._open.set()
        self._connections: set[_Connection] = set()
        self.latency = 0.0
        """Seconds that each packet takes, in either direction."""
        self.rate: float | None = None
        """Bytes a second in each direction of each connection; None: no limit."""

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._connections)

    def hole(self) -> None:
        """From now on nothing arrives, on connections old and new."""
        self._open.clear()

    def heal(self, *, forget: bool = False) -> None:
        """Ends a hole."""
        if forget:
            self.reset()
        self._open.set()

    def lead_to(self, dial: Dial) -> None:
        """New connections lead to another server; those that are open remain."""
        self._dial = dial

    def silence(self) -> None:
        """The connections that are open now go silent for good, without a word; new ones work. (Half-open.)"""
        for connection in self._connections:
            connection.silent = True

    def reset(self) -> None:
        """Cuts every connection, with RST where there is one."""
        for connection in list(self._connections):
            connection.cut()

    def accept(self) -> asyncio.Protocol:
        """The protocol of a new connection from the client."""
        connection = _Connection(self)
        self._connections.add(connection)
        return connection.near

    async def passage(self, size: int) -> bool:
        """Waits until so many bytes may pass; returns whether a hole kept them."""
        held = not self._open.is_set()
        seconds = self.latency + (size / self.rate if self.rate else 0.0)
        if seconds:
            await asyncio.sleep(seconds)
        await self._open.wait()
        return held

    async def dial(self, far: asyncio.Protocol) -> asyncio.Transport:
        """A connection to the server."""
        return await self._dial(lambda: far)

    def forget(self, connection: _Connection) -> None:
        """It is over."""
        self._connections.discard(connection)


class _Side(asyncio.Protocol):
    """One end: what comes in waits in ``arrived``; None is its end."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.transport: asyncio.Transport | None = None
        self.made = asyncio.Event()
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.made.set()

    def data_received(self, data: bytes) -> None:
        self.arrived.put_nowait(data)

    def eof_received(self) -> bool:
        self.gone = True
        self.arrived.put_nowait(None)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.arrived.put_nowait(None)


class _Connection:
    def __init__(self, link: Link) -> None:
        self._link = link
        self.near, self.far = _Side(), _Side()
        self.silent = False
        self._task = asyncio.create_task(self._run())

    def cut(self) -> None:
        for side in (self.near, self.far):
            if side.transport is not None:
                sock = side.transport.get_extra_info("socket")
                if sock is not None and sock.family != socket.AF_UNIX:
                    with suppress(OSError):  # closed already
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                side.transport.abort()
        self._task.cancel()

    async def _run(self) -> None:
        try:
            await self.near.made.wait()
            await self._link.passage(0)
            if self.near.gone:
                return
            with suppress(OSError):
                await self._link.dial(self.far)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._move(self.near, self.far))
                    group.create_task(self._move(self.far, self.near))
        finally:
            self._link.forget(self)
            for side in (self.near, self.far):
                if side.transport is not None:
                    side.transport.close()

    async def _move(self, source: _Side, target: _Side) -> None:
        while True:
            data = await source.arrived.get()
            held = await self._link.passage(len(data or b""))
            assert target.transport is not None
            if self.silent:
                if data is None and source is self.near:
                    self.cut()
                continue
            if data is None or (held and source.gone):
                target.transport.close()
                return
            target.transport.write(data)


@asynccontextmanager
async def tcp_link(dial: Dial) -> AsyncIterator[tuple[Link, int]]:
    """A link whose client connects to a port of 127.0.0.1."""
    link = Link(dial)
    server = await asyncio.get_running_loop().create_server(link.accept, "127.0.0.1", 0)
    try:
        yield link, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        link.reset()


@asynccontextmanager
async def unix_link(dial: Dial, directory: Path) -> AsyncIterator[tuple[Link, str]]:
    """A link whose client connects to a Postgres socket (port 5432) in ``directory``."""
    link = Link(dial)
    server = await asyncio.get_running_loop().create_unix_server(link.accept, directory / ".s.PGSQL.5432")
    try:
        yield link, str(directory)
    finally:
        server.close()
        link.reset()


def to_tcp(port: int) -> Dial:
    """Dials a port of 127.0.0.1."""

    async def dial(protocol: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        transport, _ = await asyncio.get_running_loop().create_connection(protocol, "127.0.0.1", port)
        return transport

    return dial


def to_unix(path: Path) -> Dial:
    """Dials a unix socket."""

    async def dial(protocol: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        transport, _ = await asyncio.get_running_loop().create_unix_connection(protocol, str(path))
        return transport

    return dial
