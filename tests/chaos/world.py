"""Everything a run has: a Postgres, FCM, listener processes, and a breakable network between them."""

from __future__ import annotations

import asyncio
import itertools
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from listener.postgres.locks import LIVENESS_CLASS
from tests.chaos.fcm import Exchange, Fcm
from tests.chaos.proxy import Link, tcp_link, to_tcp, to_unix, unix_link
from tests.support.postgres import FAST, Database, Server, Template, programs
from tests.support.service import Program, environment, program, python

FCM_REQUEST_TIMEOUT = 2.0
LEASE = 40.0
"""Seconds: about the least that the settings allow with this timeout."""
MAX_TRIES = 5
MAX_IN_FLIGHT = 100
GRACE = 10.0
CONNECTIONS = 60

_AUDIT = """
create table public.chaos_audit (
  n bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  push_id uuid not null, old_status text, status text not null, worker integer, attempt integer not null,
  old_due timestamptz, due timestamptz, lost boolean not null
);
create function chaos_note() returns trigger language plpgsql as $$
begin
  if tg_op = 'INSERT' then
    insert into public.chaos_audit (push_id, status, worker, attempt, due, lost)
      values (new.id, new.status, new.claimed_by, new.delivery_attempts, new.next_attempt_at, false);
  elsif old.status <> new.status or old.delivery_attempts <> new.delivery_attempts then
    insert into public.chaos_audit (push_id, old_status, status, worker, attempt, old_due, due, lost)
      values (new.id, old.status, new.status, new.claimed_by, new.delivery_attempts, old.next_attempt_at,
              new.next_attempt_at, new.lost_claims > old.lost_claims);
  end if;
  return null;
end
$$;
-- A process may be several workers, one after the other, and the database may forget them.
create table public.chaos_workers (id integer primary key, name text not null);
create function chaos_note_worker() returns trigger language plpgsql as $$
begin
  insert into public.chaos_workers values (new.id, new.name);
  return null;
end
$$;
create trigger chaos_note_worker after insert on push_listener.workers
  for each row execute function chaos_note_worker();
create trigger chaos_note after insert or update on push_notifications
  for each row execute function chaos_note();
"""


# A listener that asks again soon after FCM has refused the permission.
_HASTY = """
from listener.cli import main
from listener.limits.health import FcmHealth, PauseTimes
FcmHealth.__init__.__kwdefaults__["times"] = PauseTimes(refused_first={})
main.main(["run"])
"""


@dataclass(eq=False, slots=True)
class Listener:
    """One process of ``push-listener run``, with links of its own."""

    name: str
    program: Program
    postgres: Link
    fcm: Link
    port: int
    """Of its link to FCM: tells its requests from others'."""
    stack: AsyncExitStack
    started: float
    killed: float | None = None
    """Unix time of SIGKILL."""
    ended: float | None = None
    code: int | None = None
    """Its exit code after SIGTERM."""
    stops: list[tuple[float, float]] = field(default_factory=list)
    """Unix times of SIGSTOP and SIGCONT."""

    async def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        self.killed = time.time()
        self._signal(signal.SIGKILL)
        await self.program.ended()
        self.ended = time.time()
        await self.stack.aclose()

    async def stop_for(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        began = time.time()
        self._signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._signal(signal.SIGCONT)
            self.stops.append((began, time.time()))

    async def end(self) -> None:
        """SIGTERM, and waits for the end."""
        self._signal(signal.SIGTERM)
        self.code = await self.program.ended(2 * GRACE)
        self.ended = time.time()
        await self.stack.aclose()

    async def close(self) -> None:
        """Kills it, if it still runs."""
        self._signal(signal.SIGCONT)
        await self.stack.aclose()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has ended by itself, which its exit code will tell
            self.program.signal(number)

    @property
    def gave_up(self) -> bool:
        """It ended with results that the database, being away, did not take in time."""
        said = self.program.output
        return "could not settle everything" in said or "could not end in time" in said


class World:
    """See ``world``."""

    def __init__(
        self, server: Server, database: Database, fcm: Fcm, directory: Path, refused_pause: float | None
    ) -> None:
        self.server = server
        self.database = database
        self.fcm = fcm
        self.processes: list[Listener] = []
        """All that ever were, in the order of their start."""
        self._directory = directory
        self._refused_pause = refused_pause
        self._numbers = itertools.count(1)
        self._hearing: dict[int, Callable[[], None]] = {}
        self.on_request: Callable[[Exchange], None] = lambda _: None
        """Hears of each request to FCM."""
        fcm.on_request = self._heard
        self._fcm_port = urlsplit(fcm.endpoint).port or 0

    async def start(self, *, unix: bool = False, settings: Mapping[str, str] | None = None) -> Listener:
        """A new listener process, with links of its own; not waited for."""
        number = next(self._numbers)
        stack = AsyncExitStack()
        fcm, port = await stack.enter_async_context(tcp_link(to_tcp(self._fcm_port)))
        socket_directory = str(conninfo_to_dict(self.database.dsn)["host"])
        dial = to_unix(Path(socket_directory) / ".s.PGSQL.5432")
        if unix:
            place = self._directory / str(number)
            place.mkdir()
            postgres, host = await stack.enter_async_context(unix_link(dial, place))
            dsn = make_conninfo(self.database.dsn, host=host, port=5432)
        else:
            postgres, pg_port = await stack.enter_async_context(tcp_link(dial))
            dsn = make_conninfo(self.database.dsn, host="127.0.0.1", port=pg_port)
        origin = f"http://127.0.0.1:{port}"
        name = f"listener-{number}"
        variables = {
            "fcm_endpoint": origin,
            "fcm_service_account_json": orjson.dumps(self.fcm.service_account_at(origin)).decode(),
            "worker_name": name,
            "installation": "chaos",  # each listener has an address of its own
            "fcm_request_timeout": str(FCM_REQUEST_TIMEOUT),
            "fcm_connect_timeout": str(FCM_REQUEST_TIMEOUT / 2),
            "lease": str(LEASE),
            "max_tries": str(MAX_TRIES),
            "max_in_flight": str(MAX_IN_FLIGHT),
            "retry_min_delay": "0.3",
            "retry_max_delay": "2",
            # Low enough for 429 to slow the sending down, high enough for it to go on.
            "fcm_quota": "60000",
            "fcm_ramp": "10",
            "listen_check_interval": "2",
            "sweep_interval": "3600",
            "shutdown_grace": str(GRACE),
        }
        env = environment(dsn, self.fcm, **{**variables, **(settings or {})})
        process = (
            program("run", env=env, forked=True)
            if self._refused_pause is None
            else python("-c", _HASTY.format(self._refused_pause), env=env, forked=True)
        )
        started = await stack.enter_async_context(process)
        listener = Listener(name, started, postgres, fcm, port, stack, time.time())
        self.processes.append(listener)
        return listener

    async def until_sending(self, listener: Listener, patience: float = 5.0) -> None:
        """Waits, though not for ever, until a process has requests under way."""
        sending = asyncio.Event()
        self._hearing[listener.port] = sending.set
        try:
            async with asyncio.timeout(patience):
                await sending.wait()
        except TimeoutError:
            pass
        finally:
            del self._hearing[listener.port]

    def _heard(self, exchange: Exchange) -> None:
        if hear := self._hearing.get(exchange.port):
            hear()
        self.on_request(exchange)

    @property
    def running(self) -> list[Listener]:
        """The processes that have not ended."""
        return [one for one in self.processes if one.ended is None and one.killed is None]

    async def admin(self) -> AsyncConnection[tuple[object, ...]]:
        """A connection as superuser, for whom some are kept free; in autocommit."""
        return await AsyncConnection.connect(
            self.database.superuser_dsn,
            autocommit=True,
            options="-c statement_timeout=0 -c default_transaction_read_only=off",
        )

    async def terminate(self, *, doorbells: bool = True, pools: bool = False) -> int:
        """Terminates backends of the listeners; returns how many."""
        async with await self.admin() as conn:
            cursor = await conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity a "
                "where datname = current_database() and pid <> pg_backend_pid() and case when exists ("
                "  select from pg_locks l where l.pid = a.pid and l.locktype = 'advisory' and l.classid = %s) "
                "then %s else %s and application_name = 'push-listener' end",
                (LIVENESS_CLASS, doorbells, pools),
            )
            return len(await cursor.fetchall())

    async def close(self) -> None:
        """Kills what still runs."""
        for listener in self.running:
            await listener.close()


@asynccontextmanager
async def world(
    seed: int = 0, latency: float = 0.1, audited: bool = True, refused_pause: float | None = None
) -> AsyncIterator[World]:
    """A new Postgres with a migrated database, and FCM; no listener yet."""
    bin_dir = programs(18)
    assert bin_dir is not None
    settings = {**FAST, "max_connections": str(CONNECTIONS)}
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        server = Server(18, bin_dir, settings)
        await asyncio.to_thread(server.__enter__)
        try:
            with server.database(Template.MIGRATED) as database:
                if audited:
                    with psycopg.connect(database.dsn, autocommit=True) as conn:
                        conn.execute(_AUDIT)
                async with Fcm(seed=seed, latency=latency) as fcm:
                    made = World(server, database, fcm, Path(directory), refused_pause)
                    try:
                        yield made
                    finally:
                        await made.close()
        finally:
            await asyncio.to_thread(server.__exit__, None, None, None)
