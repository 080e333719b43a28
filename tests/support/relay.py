"""A way to Postgres that can be shut, and that can lose answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.postgres import Database


@dataclass
class Relay:
    """A running relay; its fields may be changed at any time."""

    dsn: str
    away: bool = False
    """Whether each connection is closed as soon as it is made."""
    turned_away: int = 0
    losses: int = 0
    """Answers still to be lost: Postgres has committed, and the connection is closed in place of the answer."""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> None:
        if self.away:
            self.turned_away += 1
            writer.close()
            return
        from_server, to_server = await asyncio.open_unix_connection(target)
        both = {writer, to_server}
        self._writers |= both
        pumps = {
            asyncio.create_task(self._pump(reader, to_server, answers=False)),
            asyncio.create_task(self._pump(from_server, writer, answers=True)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
            for each in both:
                each.close()
            self._writers -= both

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                if self.away:
                    self.turned_away += 1
                    return
                # The answer of flush_telemetry, which Postgres sends after the commit.
                if answers and self.losses and b'"accepted"' in chunk:
                    self.losses -= 1
                    return
                writer.write(chunk)
                await writer.drain()


@contextmanager
def relay_to(database: Database) -> Iterator[Relay]:
    """A relay before a database, in a thread of its own."""
    address = conninfo_to_dict(database.dsn)
    name = f".s.PGSQL.{address.get('port') or 5432}"
    target = str(Path(str(address["host"])) / name)
    with TemporaryDirectory(prefix="relay-", dir="/tmp") as directory:  # a socket's path must be short
        relay = Relay(make_conninfo(database.dsn, host=directory))
        loop = asyncio.new_event_loop()
        ready, leave = threading.Event(), asyncio.Event()

        async def serve() -> None:
            server = await asyncio.start_unix_server(
                lambda reader, writer: relay._serve(reader, writer, target), str(Path(directory) / name)
            )
            ready.set()
            await leave.wait()
            server.close()
            for writer in list(relay._writers):
                writer.close()

        def run() -> None:
            try:
                asyncio.set_event_loop(loop)
                loop.run_until_complete(serve())
                left = asyncio.all_tasks(loop)
                for task in left:
                    task.cancel()
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            finally:
                ready.set()
                loop.close()

        thread = threading.Thread(target=run, name="relay")
        thread.start()
        ready.wait()
        try:
            yield relay
        finally:
            if not loop.is_closed():
                loop.call_soon_threadsafe(leave.set)
            thread.join()
