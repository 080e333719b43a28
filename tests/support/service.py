"""The service for tests: in this process, or as a process of its own; and its rows, put in and waited for."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString, NamedTuple, ParamSpec, cast
from uuid import UUID

import aiohttp
import orjson
import psycopg
import pytest
from psycopg import sql
from psycopg.abc import Buffer
from psycopg.rows import DictRow, dict_row
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from listener import config
from listener.config import Settings
from listener.emulator import Emulator
from listener.emulator.faults import Fault
from listener.fcm.sender import Sender
from listener.limits.health import FcmHealth
from listener.limits.quota import Quota
from listener.limits.shared_quota import SharedQuota
from listener.limits.slow_start import SlowStart
from listener.metrics.own import Metrics
from listener.postgres.connect import Pool
from listener.postgres.locks import LockWatch
from listener.postgres.queue import Queue
from listener.postgres.workers import Workers
from listener.sending.dispatcher import Dispatcher
from listener.sending.held import HeldRows
from listener.service import Service, credentials_for
from listener.tracing import Tracing
from listener.wakeup.waker import ListeningWaker, Waker
from listener.worker import assemble
from tests.support.forked import Forked
from tests.support.forked import start as start_forked
from tests.support.postgres import Database
from tests.support.servers import forget_proxies

PROJECT = Path(__file__).resolve().parents[2]

OVER = frozenset({"sent", "delivered", "dead", "expired", "cancelled"})

PATIENCE = 60.0
"""Seconds after which something that is waited for will not come any more."""

_P = ParamSpec("_P")
Row = DictRow
Connection = psycopg.AsyncConnection[DictRow]


class _Endless(TimestamptzLoader):
    def load(self, data: Buffer) -> datetime:
        with suppress(ValueError):  # another DateStyle, or 'infinity'
            return datetime.fromisoformat(
                bytes(data).decode()
            )  # psycopg, which reads any style, takes ten times longer
        try:
            return super().load(data)
        except psycopg.DataError:  # 'infinity', which Python's datetime has not
            return datetime.max.replace(tzinfo=UTC)


async def connect(dsn: str) -> Connection:
    """A connection in autocommit whose rows are dictionaries."""
    connection = await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, row_factory=dict_row, client_encoding="utf8"
    )
    connection.adapters.register_loader("timestamptz", _Endless)
    return connection


# A change of status rings on a channel of its own: tests wait for rows, and need not look again and again.
_TELL = """
create or replace function public.test_tell() returns trigger language plpgsql as
  $$ begin perform pg_notify('test_rows', ''); return null; end $$;
create or replace trigger test_tell after insert or update or delete on public.push_notifications
  for each statement execute function public.test_tell();
"""


class Rows:
    """``push_notifications`` of one database."""

    def __init__(self, connection: Connection, changed: asyncio.Event) -> None:
        self.connection = connection
        self._changed = changed

    async def add(self, **values: object) -> UUID:
        """Inserts one row as an application would; dictionaries and lists become jsonb."""
        given = {name: _adapted(value) for name, value in values.items()}
        statement = sql.SQL("insert into push_notifications ({}) values ({}) returning id").format(
            sql.SQL(", ").join(map(sql.Identifier, given)),
            sql.SQL(", ").join(map(sql.Placeholder, given)),
        )
        row = await (await self.connection.execute(statement, given)).fetchone()
        assert row is not None
        return UUID(str(row["id"]))

    async def may_be_early(self) -> None:
        """From now on a row that is written as due long ago is not made due now."""
        for trigger in ("push_listener_never_early", "push_listener_never_early_again"):
            await self.query(f"alter table push_notifications disable trigger {trigger}")

    async def add_many(self, count: int, prefix: str = "phone") -> None:
        """Inserts so many rows with one statement, for devices that are numbered from 1."""
        await self.query(
            "insert into push_notifications (device_token, title) "
            "select %(prefix)s || '-' || n, 't' from generate_series(1, %(count)s) n",
            prefix=prefix,
            count=count,
        )

    async def survive_crash(self) -> None:
        """Returns once a crash of Postgres would forget nothing that is committed now, claims included."""
        await self.query("select pg_logical_emit_message(true, 'test', '')")  # its commit waits for the disk

    async def get(self, push_id: UUID) -> Row:
        """One row as it is now."""
        return (await self.all([push_id]))[push_id]

    async def all(self, ids: Iterable[UUID] | None = None) -> dict[UUID, Row]:
        """These rows, or every row, as they are now."""
        wanted = None if ids is None else list(ids)
        found = await self.query(
            "select *, "
            "(extract(epoch from next_attempt_at) - extract(epoch from clock_timestamp()))::float8 as next_in "
            "from push_notifications where %(ids)s::uuid[] is null or id = any(%(ids)s)",
            ids=wanted,
        )
        return {row["id"]: row for row in found}

    async def until(
        self,
        good: Callable[[dict[UUID, Row]], bool],
        ids: Iterable[UUID] | None = None,
        patience: float = PATIENCE,
    ) -> dict[UUID, Row]:
        """The rows as soon as ``good`` is true of them. Fails saying how they are if that does not come."""
        wanted = None if ids is None else list(ids)
        rows: dict[UUID, Row] = {}
        try:
            async with asyncio.timeout(patience):
                while True:
                    self._changed.clear()
                    rows = await self.all(wanted)
                    if good(rows):
                        return rows
                    await self._changed.wait()
        except TimeoutError:
            states = [(row["status"], row["error_code"], row["retry_count"]) for row in rows.values()]
            pytest.fail(f"rows did not become what was waited for: {states[:20]}")

    async def over(self, *ids: UUID, patience: float = PATIENCE) -> dict[UUID, Row]:
        """The rows, once nothing more is to be done for any of them."""
        wanted, began = list(ids) or None, time.monotonic()
        with suppress(TimeoutError):  # until() says how the rows are
            async with asyncio.timeout(patience):
                while await self._is_one_open(
                    wanted
                ):  # to read all rows at each change takes the time of many
                    await self._changed.wait()
        left = began + patience - time.monotonic()
        return await self.until(
            lambda rows: all(row["status"] in OVER for row in rows.values()), wanted, max(left, 1.0)
        )

    async def _is_one_open(self, ids: list[UUID] | None) -> bool:
        self._changed.clear()
        found = await self.query(
            "select 1 from push_notifications "
            "where status::text <> all(%(over)s::text[]) and (%(ids)s::uuid[] is null or id = any(%(ids)s)) limit 1",
            over=list(OVER),
            ids=ids,
        )
        return bool(found)

    async def one_over(self, push_id: UUID, patience: float = PATIENCE) -> Row:
        """One row, once nothing more is to be done for it."""
        return (await self.over(push_id, patience=patience))[push_id]

    async def logs(self, push_id: UUID) -> list[Row]:
        """Its rows of ``push_delivery_logs``, oldest first."""
        return await self.query(
            "select device_token, status, details from push_delivery_logs where push_id = %(id)s "
            "order by created_at, ctid",
            id=push_id,
        )

    async def device(self, token: str, user_id: UUID, platform: str = "android") -> None:
        """Registers a device of a user."""
        await self.query(
            "insert into push_devices (token, user_id, platform) values (%(token)s, %(user)s, %(platform)s)",
            token=token,
            user=user_id,
            platform=platform,
        )

    async def query(self, statement: LiteralString, **values: object) -> list[Row]:
        """What a statement returns."""
        cursor = await self.connection.execute(statement, values or None)
        return await cursor.fetchall() if cursor.description else []


def _adapted(value: object) -> object:
    return Jsonb(value) if isinstance(value, dict | list) else value


@asynccontextmanager
async def rows_of(dsn: str) -> AsyncIterator[Rows]:
    """The rows of a database, with word of every change."""
    async with await connect(dsn) as connection, await connect(dsn) as listening:
        with suppress(psycopg.errors.UniqueViolation):  # two at once
            await connection.execute(_TELL)
        await listening.execute("listen test_rows")
        changed = asyncio.Event()

        async def hear() -> None:
            async for _ in listening.notifies():
                changed.set()

        hearing = asyncio.create_task(hear())
        try:
            yield Rows(connection, changed)
        finally:
            hearing.cancel()
            with suppress(asyncio.CancelledError, psycopg.OperationalError):
                await hearing


def environment(dsn: str, emulator: Emulator, **variables: str) -> dict[str, str]:
    """The whole environment of ``push-listener run``, with nothing of this process's own settings in it.

    ``variables`` are named in lower case; one that is empty counts as not set.
    """
    return {
        "PATH": os.environ.get("PATH", ""),
        "HOME": os.environ.get("HOME", "/"),
        "DATABASE_URL": dsn,
        "FCM_ENDPOINT": emulator.endpoint,
        "FCM_SERVICE_ACCOUNT_JSON": orjson.dumps(emulator.service_account).decode(),
        "HOST": "127.0.0.1",
        "PORT": "0",
        "LOG_FORMAT": "json",
        **{name.upper(): value for name, value in variables.items()},
    }


def settings_for(dsn: str, emulator: Emulator, **settings: object) -> Settings:
    """Settings for the service in this process. The sweep comes so late that nothing can be owed to it."""
    given: dict[str, object] = {
        "database_url": dsn,
        "listen_database_url": None,
        "fcm_project_id": None,
        "fcm_endpoint": emulator.endpoint,
        "fcm_service_account_json": emulator.service_account,
        "google_application_credentials": None,
        "metrics_token": None,
        "host": "127.0.0.1",
        "port": 0,
        "sweep_interval": 3600,
        "retry_min_delay": 0.05,
        "retry_max_delay": 0.1,
        **settings,
    }
    return config.load(**given)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Service]:
    """The service in this process, ready; stopped at the end. A fault that ended it is raised."""
    with pytest.MonkeyPatch.context() as patch:
        forget_proxies(patch)
        service = Service(settings, *credentials_for(settings))
        ready = asyncio.Event()
        running = asyncio.create_task(service.run(on_ready=ready.set))
        waiting = asyncio.create_task(ready.wait())
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
                pytest.fail("the service ended before it was ready")
            yield service
            service.stop()
            async with asyncio.timeout(PATIENCE):
                await running
        finally:
            waiting.cancel()
            running.cancel()
            await asyncio.wait({running})


class Place(NamedTuple):
    """A migrated database, its rows and FCM, which several tests use, each with services of its own."""

    database: Database
    rows: Rows
    emulator: Emulator

    def settings(self, **settings: object) -> Settings:
        """For a service in it."""
        return settings_for(self.database.dsn, self.emulator, **settings)


class Shared(NamedTuple):
    """A service in this process that several tests use, with its database, its rows and its FCM."""

    database: Database
    rows: Rows
    emulator: Emulator
    service: Service


def sample(metrics: Metrics, name: str, labels: dict[str, str] | None = None) -> float | None:
    """The value of a metric, or None where there is none: what get_sample_value says, and takes 4 ms for."""
    for family in metrics.registry.restricted_registry([name]).collect():
        for each in family.samples:
            if each.name == name and each.labels == (labels or {}):
                return float(each.value)
    return None


async def shown(metrics: Metrics, name: str, value: float, labels: dict[str, str] | None = None) -> None:
    """Returns once a metric has a value: the database shows what is done a moment before the process has counted it."""
    async with asyncio.timeout(PATIENCE):
        while sample(metrics, name, labels) != value:  # noqa: ASYNC110 (it tells nobody of a change)
            await asyncio.sleep(0.01)


async def until(condition: Callable[[], object]) -> None:
    """For what gives no sign of its own."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0.01)


async def until_found(ask: Callable[_P, Awaitable[object]], *args: _P.args, **kwargs: _P.kwargs) -> None:
    """Asks until there is something. For what Postgres tells nobody of."""
    async with asyncio.timeout(PATIENCE):
        while not await ask(*args, **kwargs):  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0.01)


async def until_gone(ask: Callable[_P, Awaitable[object]], *args: _P.args, **kwargs: _P.kwargs) -> None:
    """Asks until there is nothing left. For what Postgres tells nobody of."""
    async with asyncio.timeout(PATIENCE):
        while await ask(*args, **kwargs):  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0.01)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """A test that does the same for several things says which of them failed."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"with: {what}")
        raise


@contextmanager
def unanswered(emulator: Emulator) -> Iterator[None]:
    """FCM takes the requests that come meanwhile, and answers them when this ends, however long that takes."""
    answering, delay = asyncio.Event(), emulator._delay

    async def delay_until_answered(fault: Fault | None) -> None:
        await answering.wait()
        await delay(fault)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emulator, "_delay", delay_until_answered)
        try:
            yield
        finally:
            answering.set()


async def get(port: int, path: str, **headers: str) -> tuple[int, str]:
    """Status and text of an HTTP answer from 127.0.0.1."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{port}{path}", headers=headers) as answer,
    ):
        return answer.status, await answer.text()


class Program:
    """A running command of push-listener, and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process | Forked) -> None:
        self._process = process
        self._heard = asyncio.Event()
        self._open = 2
        self.out = ""
        """Standard output."""
        self.err = ""
        """Standard error: the log."""
        assert process.stdout is not None
        assert process.stderr is not None
        self._reading = asyncio.gather(self._read(process.stdout, "out"), self._read(process.stderr, "err"))

    @property
    def output(self) -> str:
        """All that it has said."""
        return self.out + self.err

    @property
    def records(self) -> list[dict[str, Any]]:
        """The log records so far (LOG_FORMAT=json)."""
        whole = self.err[: self.err.rfind("\n") + 1]
        return [orjson.loads(line) for line in whole.splitlines() if line.startswith("{")]

    async def said(self, event: str) -> dict[str, Any]:
        """The first log record of an event, once it is there; fails if the program ends before."""
        await self._until(lambda: any(record["event"] == event for record in self.records), event)
        return next(record for record in self.records if record["event"] == event)

    async def said_of(self, event: str, field: str, count: int) -> None:
        """Returns once records of an event have told so many altogether; a worker may tell in several of them."""

        def told() -> int:
            return sum(record.get(field, 0) for record in self.records if record["event"] == event)

        await self._until(lambda: told() >= count, f"{event}: {field}={count}")
        assert told() == count

    async def printed(self, text: str) -> None:
        """Returns once this has been printed; fails if the program ends before."""
        await self._until(lambda: text in self.out, text)

    async def printed_to_stderr(self, text: str) -> None:
        """Returns once this has been printed to standard error; fails if the program ends before."""
        await self._until(lambda: text in self.err, text)

    async def _until(self, come: Callable[[], bool], what: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not come() and self._open:
                    self._heard.clear()
                    await self._heard.wait()
        if not come():
            pytest.fail(f"never said {what!r}, but:\n{self.output[-4000:]}")

    async def port(self) -> int:
        """Where its web server listens."""
        return int((await self.said("web server listening"))["port"])

    async def ended(self, patience: float = PATIENCE) -> int:
        """Its exit code, once it has ended."""
        try:
            async with asyncio.timeout(patience):
                await self._process.wait()
                await self._reading
        except TimeoutError:
            pytest.fail(f"did not end within {patience:g} s:\n{self.output[-4000:]}")
        assert self._process.returncode is not None
        return self._process.returncode

    def terminate(self) -> None:
        """Sends it SIGTERM."""
        self._process.terminate()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def close(self) -> None:
        """Ends it, if it has not ended."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading

    async def _read(self, stream: asyncio.StreamReader, name: str) -> None:
        while chunk := await stream.read(65536):
            setattr(self, name, getattr(self, name) + chunk.decode(errors="replace"))
            self._heard.set()
        self._open -= 1
        self._heard.set()


@asynccontextmanager
async def program(*arguments: str, env: Mapping[str, str], forked: bool = False) -> AsyncIterator[Program]:
    """``push-listener ARGUMENTS`` as a process of its own; killed at the end if it is still there.

    ``forked``: from a process that has imported it already, see tests.support.forked. It starts ten times as fast.
    """
    async with python("-m", "listener", *arguments, env=env, forked=forked) as started:
        yield started


@asynccontextmanager
async def python(*arguments: str, env: Mapping[str, str], forked: bool = False) -> AsyncIterator[Program]:
    """``python ARGUMENTS`` likewise."""
    process = await (start_forked(arguments, env) if forked else _start(arguments, env))
    started = Program(process)
    try:
        yield started
    finally:
        await started.close()


async def _start(arguments: Sequence[str], env: Mapping[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=PROJECT,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(*arguments: str, env: Mapping[str, str], forked: bool = False) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command that ends by itself."""
    async with program(*arguments, env=env, forked=forked) as started:
        code = await started.ended()
        return code, started.out, started.err


def dispatcher_of(service: Service) -> Dispatcher:
    """The dispatcher of the worker that runs."""
    assert service.worker is not None
    return service.worker.dispatcher


def waker_of(service: Service) -> ListeningWaker:
    """What wakes the worker that runs, which listens."""
    assert service.worker is not None
    assert isinstance(service.worker.waker, ListeningWaker)
    return service.worker.waker


def dispatcher_on(
    queue: Queue, sender: Sender, settings: Settings, waker: Waker, health: FcmHealth | None = None
) -> tuple[Dispatcher, HeldRows]:
    """A dispatcher without a service around it, and the rows that it holds."""
    metrics = Metrics()
    health = health or FcmHealth(SlowStart(1000, 1.0, 0.0))
    quota = SharedQuota(
        cast(Workers, None), Quota(settings.fcm_quota, 0.0, time.monotonic()), metrics
    )  # nobody runs it
    sending = assemble(settings, queue, waker, sender, health, quota, LockWatch(metrics), metrics, Tracing())
    return sending.dispatcher, sending.held


def with_arguments(monkeypatch: pytest.MonkeyPatch, made: type, **arguments: Any) -> None:
    """Gives these arguments to every object of a class that is made from here on, unless its maker names them."""
    make = made.__init__  # type: ignore[misc]

    def initialize(self: object, *given: Any, **named: Any) -> None:
        make(self, *given, **(arguments | named))

    monkeypatch.setattr(made, "__init__", initialize)


@asynccontextmanager
async def pool_of(dsn: str) -> AsyncIterator[Pool]:
    """A pool as the service has it, of a few connections."""
    async with AsyncConnectionPool(
        dsn, min_size=1, max_size=4, open=False, kwargs={"autocommit": True}
    ) as pool:
        yield pool


def workers_of(queue: Queue) -> Workers:
    """What the same worker asks about the others."""
    lease = queue._claiming.lease
    return Workers(queue._pool, worker_id=queue.worker_id, lease=lease, incarnation=queue._incarnation)
