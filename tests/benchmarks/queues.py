"""What is measured: push-listener, the queues beside it, and the least loop that could do; each behind the same face.

The peers are installed into a virtual environment of their own, .cache/peers, when they are first asked for.
"""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import orjson
import psycopg

from listener.demo.embedded import EmbeddedPostgres
from listener.postgres.locks import LIVENESS_CLASS
from listener.schema import migrate
from tests.benchmarks import rig
from tests.benchmarks.rig import BenchmarkFailed, Sink

LISTENER = "push-listener"
PEERS = ("pgqueuer", "procrastinate")
BARE = "bare loop"

REQUIREMENTS = (
    "pgqueuer[asyncpg]==1.6.0",
    "procrastinate==3.10.0",
    "psycopg[binary]>=3.2,<4",
    "aiohttp>=3.14,<4",
    "orjson>=3.10,<4",
    "uvloop>=0.21,<1",
)
_VENV = rig.ROOT / ".cache" / "peers"
_PYTHON = _VENV / "bin" / "python"
_JOBS = {
    "pgqueuer": ("user", "pgqueuer"),
    "procrastinate": (
        "procrastinate_jobs_notify_queue_job_inserted_v1",
        "procrastinate_jobs where status in ('todo', 'doing')",
    ),
}


@dataclass(frozen=True, slots=True)
class Push:
    """SQL expressions for what is in a push: 300 bytes, with a token of the length that FCM's have.

    ``:n`` is a number that pgbench gives.
    """

    id: str = "gen_random_uuid()"
    token: str = f"'{'c3kQ7xNw9eo-APA91bF' * 8}' || lpad((:n)::bigint::text, 11, '0')"
    title: str = "'Your ride is waiting'"
    body: str = "'A blue estate car, number plate 4711, stands at the corner. It waits for 5 min.'"
    data: str = "jsonb_build_object('ride', lpad((:n)::bigint::text, 8, '0'), 'screen', 'ride')"
    priority: str = "'normal'"
    """Which the peers do not get."""


Worker = AbstractContextManager[subprocess.Popen[str]]


@dataclass(frozen=True, slots=True)
class Installed:
    """A queue on a database of its own."""

    name: str
    dsn: str
    silence: str
    """SQL after which no trigger rings the bell."""
    unfinished: str
    """SQL that counts the jobs that are not done."""
    statement: Callable[[Push], str]
    worker: Callable[[Sink, Mapping[str, str]], Worker]
    """Starts a worker process, which needs a while to be at work. The mapping is push-listener's settings."""

    def insert(self, push: Push | None = None) -> str:
        """SQL that adds a job as the queue's own client does."""
        return self.statement(push or Push())

    def connect(self) -> psycopg.Connection:
        """A connection in autocommit, as superuser."""
        return psycopg.connect(self.dsn, autocommit=True)

    def pending(self, conn: psycopg.Connection) -> int:
        """How many jobs are not done."""
        row = conn.execute(self.unfinished.encode()).fetchone()
        assert row is not None
        return int(row[0])

    def deafen(self, conn: psycopg.Connection) -> int:
        """Terminates the backends that LISTEN; returns how many."""
        found = conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity a where datname = current_database() "
            "and pid <> pg_backend_pid() and (query ilike 'listen %%' or exists (select from pg_locks l "
            "where l.pid = a.pid and l.locktype = 'advisory' and l.classid = %s))",
            (LIVENESS_CLASS,),
        )
        return len(found.fetchall())


def install(name: str, server: EmbeddedPostgres, database: str | None = None) -> Installed:
    """Makes a database with the tables of a queue, ``LISTENER``, ``BARE`` or one of ``PEERS``."""
    dsn = server.create_database(database or name)
    if name in PEERS:
        return _peer(name, dsn)
    migrate.apply(dsn)
    return Installed(
        name,
        dsn,
        "alter table push_notifications disable trigger user",
        "select count(*) from push_notifications "
        "where next_attempt_at is not null and status in ('pending', 'processing', 'failed')",
        lambda push: (
            "insert into push_notifications (id, device_token, title, body, data, priority) "
            f"values ({push.id}, {push.token}, {push.title}, {push.body}, {push.data}, {push.priority})"
        ),
        lambda sink, settings: (
            rig.module("tests.benchmarks.bare", sink.sends, environment={"DATABASE_URL": dsn, **sink.trust})
            if name == BARE
            else rig.module("listener", "run", environment=rig.listener_environment(dsn, sink, **settings))
        ),
    )


def _peer(name: str, dsn: str) -> Installed:
    prepare_peers()
    command = [str(_PYTHON), str(Path(__file__).with_name("peer.py")), name]
    done = subprocess.run([*command, "install", dsn], capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchmarkFailed(f"{name} cannot be installed:\n{done.stderr[-2000:]}")
    statement = str(orjson.loads(done.stdout))
    bell, unfinished = _JOBS[name]
    return Installed(
        name,
        dsn,
        f"alter table {unfinished.partition(' ')[0]} disable trigger {bell}",
        f"select count(*) from {unfinished}",
        lambda push: statement.replace(
            "ARGS",
            f"jsonb_build_object('push_id', {push.id}, 'token', {push.token}, 'title', {push.title}, "
            f"'body', {push.body}, 'data', {push.data})",
        ),
        lambda sink, _: rig.program([*command, "work", dsn, sink.sends], environment=sink.trust),
    )


def prepare_peers() -> None:
    """Makes the peers' environment, if need be. Raises BenchmarkFailed when that cannot be done."""
    complete, wanted = _VENV / "complete", "\n".join(REQUIREMENTS)
    if complete.exists() and complete.read_text() == wanted:
        return
    rig.say("installing the peers into .cache/peers")
    venv.create(_VENV, with_pip=True, clear=True)
    command = [str(_PYTHON), "-m", "pip", "install", "--quiet", *REQUIREMENTS]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchmarkFailed(f"the peers cannot be installed:\n{done.stderr[-2000:]}")
    complete.write_text(wanted)


def peer_versions() -> dict[str, str]:
    """Of the peers' libraries, by name."""
    listed = subprocess.run(
        [_PYTHON, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True
    )
    versions = {one["name"]: one["version"] for one in orjson.loads(listed.stdout)}
    return {name: versions[name] for name in (*PEERS, "asyncpg", "psycopg", "aiohttp", "uvloop", "orjson")}
