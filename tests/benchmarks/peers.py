"""How soon others take over: a worker killed, a LISTEN connection lost. Side by side with pgqueuer and procrastinate.

    python -m tests.benchmarks.peers

The peers are installed into a virtual environment of their own, .cache/peers. Each has a new database on the same
Postgres; its workers make one HTTP request for each job, to the same server, which notes who asked and when.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import click
import orjson
import psycopg
from aiohttp import web
from rich.table import Table

from listener import migrate
from listener.embedded import EmbeddedPostgres
from listener.queue import LIVENESS_CLASS
from tests.benchmarks import rig

REQUIREMENTS = (
    "pgqueuer[asyncpg]==1.6.0",
    "procrastinate==3.10.0",
    "psycopg[binary]>=3.2,<4",
    "aiohttp>=3.14,<4",
)
NAMES = ("push-listener", "pgqueuer", "procrastinate")

_ROOT = Path(__file__).resolve().parents[2]
_VENV = _ROOT / ".cache" / "peers"
_JOBS = 20
_PATIENCE = 150.0
_SETTLED = 6.0
"""Seconds that a worker has between its start and what is done to it."""


def _python() -> Path:
    """The interpreter of the peers' environment, which is made if need be."""
    python = _VENV / "bin" / "python"
    if not (_VENV / "complete").exists():
        rig.errors.print("installing the peers into .cache/peers")
        venv.create(_VENV, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        (_VENV / "complete").touch()
    return python


class Desk:
    """The HTTP server that all of them send to. A worker in ``held`` gets no answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, float]] = []
        """Worker, job, Unix time."""
        self.held: set[str] = set()
        self.port = 0
        self._news = asyncio.Event()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """For peers /worker/job; for push-listener what FCM and Google's token endpoint are asked."""
        now = time.time()
        if request.path == "/token":
            return web.json_response({"access_token": "t", "expires_in": 3600, "token_type": "Bearer"})
        worker, _, job = request.path.strip("/").partition("/")
        if job.endswith("messages:send"):
            job = str(orjson.loads(await request.read())["message"]["data"]["push_id"])
        self.asked.append((worker, job, now))
        self._news.set()
        if worker in self.held:
            await asyncio.sleep(600)
        return web.json_response({"name": "projects/p/messages/1"})

    async def until(self, worker: str, count: int, since: float) -> float | None:
        """Unix time at which so many jobs were there from a worker, or None when they do not come."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while True:
                    self._news.clear()
                    first: dict[str, float] = {}
                    for who, job, at in self.asked:
                        if who == worker and at >= since:
                            first.setdefault(job, at)
                    if len(first) >= count:
                        return sorted(first.values())[count - 1]
                    await self._news.wait()
        except TimeoutError:
            return None


@asynccontextmanager
async def _desk() -> AsyncIterator[Desk]:
    desk = Desk()
    server = web.Server(desk.answer)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    desk.port = listening.sockets[0].getsockname()[1]
    try:
        yield desk
    finally:
        listening.close()
        await server.shutdown(0.1)


class Contestant:
    """One queue on a database of its own."""

    def __init__(self, name: str, dsn: str, desk: Desk) -> None:
        self.name = name
        self.dsn = dsn
        self._desk = desk

    async def install(self) -> None:
        """Makes its tables."""
        if self.name == "push-listener":
            await asyncio.to_thread(migrate.apply, self.dsn)
        else:
            async with self._peer("install", self.dsn) as process:
                await process.wait()

    @asynccontextmanager
    async def worker(self, called: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """A worker process, given some seconds to settle down."""
        url = f"http://127.0.0.1:{self._desk.port}"
        if self.name == "push-listener":
            env = rig.listener_environment(
                self.dsn, url, FCM_ENDPOINT=f"{url}/{called}", REQUEST_TIMEOUT="100", LEASE="300"
            )
            started: AbstractAsyncContextManager[asyncio.subprocess.Process] = _process(
                sys.executable, "-m", "listener", "run", env=env
            )
        else:
            started = self._peer("work", self.dsn, f"{url}/{called}")
        async with started as process:
            await asyncio.sleep(_SETTLED)
            if process.returncode is not None:
                raise rig.BenchmarkFailed(f"a worker of {self.name} ended with {process.returncode}")
            yield process

    @asynccontextmanager
    async def application(self) -> AsyncIterator[Application]:
        """A connected application, so that adding a job takes no longer than it must."""
        if self.name == "push-listener":
            async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as conn:
                yield Application(conn, None)
        else:
            async with self._peer("enqueue", self.dsn) as process:
                assert process.stdout is not None
                await process.stdout.readline()
                yield Application(None, process)

    def _peer(self, *arguments: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        return _process(str(_python()), str(Path(__file__).with_name("peer.py")), self.name, *arguments)

    async def deafen(self) -> int:
        """Terminates the backends that LISTEN; returns how many."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as conn:
            cursor = await conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity a "
                "where datname = current_database() and pid <> pg_backend_pid() and (query ilike 'listen %%' or exists "
                "(select from pg_locks l where l.pid = a.pid and l.locktype = 'advisory' and l.classid = %s))",
                (LIVENESS_CLASS,),
            )
            return len(await cursor.fetchall())


class Application:
    """Adds jobs."""

    def __init__(
        self,
        conn: psycopg.AsyncConnection[tuple[object, ...]] | None,
        process: asyncio.subprocess.Process | None,
    ) -> None:
        self._conn = conn
        self._process = process

    async def add(self, count: int) -> float:
        """Adds so many; returns when they were committed."""
        if self._conn is not None:
            await self._conn.execute(
                "insert into push_notifications (device_token, title) "
                "select 'phone', 't' from generate_series(1, %s)",
                (count,),
            )
            return time.time()
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{count}\n".encode())
        return float(await self._process.stdout.readline())


@asynccontextmanager
async def _process(
    *command: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=_ROOT,
        env=env,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _killed(contestant: Contestant, desk: Desk) -> float | None:
    """SIGKILL of a worker with jobs: seconds until all of them are with another."""
    desk.held = {"first"}
    async with contestant.application() as application, contestant.worker("first") as first:
        added = await application.add(_JOBS)
        if await desk.until("first", _JOBS, added - 1) is None:
            raise rig.BenchmarkFailed(f"{contestant.name} did not take the jobs")
        async with contestant.worker("second"):
            began = time.time()
            first.kill()
            there = await desk.until("second", _JOBS, began)
    return None if there is None else there - began


async def _deaf(contestant: Contestant, desk: Desk) -> float | None:
    """The LISTEN backend is terminated: seconds that the next job waits."""
    desk.held = set()
    async with contestant.application() as application, contestant.worker("only"):
        added = await application.add(1)
        if await desk.until("only", 1, added - 1) is None:
            raise rig.BenchmarkFailed(f"{contestant.name} did not take the job")
        await asyncio.sleep(_SETTLED)
        if await contestant.deafen() == 0:
            raise rig.BenchmarkFailed(f"no backend of {contestant.name} listens")
        added = await application.add(1)
        there = await desk.until("only", 1, added - 0.5)
    return None if there is None else max(0.0, there - added)


async def _measure(names: list[str], runs: int) -> dict[str, dict[str, list[float | None]]]:
    found: dict[str, dict[str, list[float | None]]] = {}
    with EmbeddedPostgres(version=rig.POSTGRES, settings={"fsync": "off"}) as server:
        for name in names:
            results: dict[str, list[float | None]] = {"worker killed": [], "LISTEN backend terminated": []}
            for run in range(runs):
                for what, measure in (("worker killed", _killed), ("LISTEN backend terminated", _deaf)):
                    async with _desk() as desk:
                        dsn = server.create_database(f"{name}_{what}_{run}".replace(" ", "_").lower())
                        contestant = Contestant(name, dsn, desk)
                        await contestant.install()
                        results[what].append(await measure(contestant, desk))
                    rig.errors.print(f"{name}: {what}: {_shown(results[what][-1])} s")
            found[name] = results
    return found


def _shown(seconds: float | None) -> str:
    return f"more than {_PATIENCE:.0f}" if seconds is None else f"{seconds:.2f}"


def _summary(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return _shown(None)
    return f"{statistics.median(known):.2f} ({min(known):.2f} to {max(known):.2f})"


@click.command()
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Default: all.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def main(runs: int, only: tuple[str, ...], as_json: bool) -> None:
    """Seconds until jobs are done again, by whom they may."""
    found = asyncio.run(_measure(list(only or NAMES), runs))
    if as_json:
        sys.stdout.buffer.write(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
        return
    table = Table(
        title="Seconds until jobs are worked on again: median (least to most)", title_justify="left"
    )
    table.add_column("")
    for what in ("worker killed", "LISTEN backend terminated"):
        table.add_column(what, justify="right")
    for name, results in found.items():
        table.add_row(name, *(_summary(values) for values in results.values()))
    rig.console.print(table)


if __name__ == "__main__":
    main()
