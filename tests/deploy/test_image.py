"""The image is built and run: a row is delivered, and the container says how it is and ends when it is asked to."""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pytest
from psycopg.conninfo import conninfo_to_dict

from listener import __version__
from listener.emulator import Emulator
from tests.chaos.proxy import tcp_link, to_unix
from tests.support.image import Image, built
from tests.support.postgres import Database
from tests.support.servers import closed_port
from tests.support.service import PROJECT, get, rows_of

pytestmark = pytest.mark.timeout(1800)  # a build on a busy machine


@pytest.fixture(
    scope="session"
)  # of the module, it would be made again for each version of Postgres and without
def image() -> Iterator[Image]:
    # Not pytest's own directory: it would keep more than a gigabyte for each of three runs.
    with (
        TemporaryDirectory(prefix="push-listener-") as directory,
        built(Path(directory), VERSION=__version__, REVISION="abc123") as image,
    ):
        yield image


@asynccontextmanager
async def over_tcp(database: Database) -> AsyncIterator[str]:
    """An address that leads to the database from a container, which does not see the socket's directory."""
    where = conninfo_to_dict(database.dsn)
    async with tcp_link(to_unix(database.server.data_dir.parent / ".s.PGSQL.5432")) as (_, port):
        yield f"postgresql://{where['user']}@127.0.0.1:{port}/{where['dbname']}"


def environment(dsn: str, emulator: Emulator) -> dict[str, str]:
    return {
        "DATABASE_URL": dsn,
        "FCM_ENDPOINT": emulator.endpoint,
        "FCM_SERVICE_ACCOUNT_JSON": orjson.dumps(emulator.service_account).decode(),
        "HOST": "127.0.0.1",
        "PORT": str(closed_port()),
        "LOG_FORMAT": "json",
    }


async def test_from_an_empty_database_to_a_delivered_push(
    image: Image, blank_database: Database, emulator: Emulator
) -> None:
    async with over_tcp(blank_database) as dsn:
        env = environment(dsn, emulator)
        code, output = await image.run("migrate", env=env)  # what Fly's release_command makes of it
        assert code == 0, output
        async with rows_of(blank_database.dsn) as rows, image.container(env=env) as container:
            await container.program.said("ready")
            push = await rows.add(device_token="phone", title="t")
            assert (await rows.one_over(push))["status"] == "sent"
            assert [record.push_id for record in emulator.accepted] == [str(push)]

            # The commands of docs/deploy-docker.md.
            code, output = await image.run("doctor", env=env)
            assert code == 0, output
            code, output = await image.run("send", "--token", "t", "--title", "t", "--wait", "20", env=env)
            assert code == 0
            assert re.search(r"^[0-9a-f-]{36} sent$", output, re.MULTILINE)
            code, output = await image.run("stats", "--json", env=env)
            assert code == 0
            assert orjson.loads(output)["sent"] == 2

            where = f"http://127.0.0.1:{env['PORT']}"
            assert await container.healthcheck() == (0, f"{where}/healthz answers 200: ok\n")
            assert await container.healthcheck("--ready") == (0, f"{where}/readyz answers 200: ok\n")

            status = container.status()
            assert status["Uid"] == status["Gid"] == ["10001"] * 4
            assert status["CapEff"] == ["0" * 16]
            assert status["NSpid"][-1] == "1"  # it has no shell around it that would keep signals from it

            container.stop()
            assert await container.program.ended() == 0
            assert container.program.records[-1]["event"] == "stopped"


async def test_the_health_check_finds_a_container_that_does_not_answer(
    image: Image, database: Database, emulator: Emulator
) -> None:
    async with over_tcp(database) as dsn:
        env = environment(dsn, emulator)
        async with image.container(env=env) as container:
            await container.program.said("ready")
            container.env["PORT"] = str(closed_port())
            code, output = await container.healthcheck()
            assert code == 1
            assert "does not answer" in output


async def test_the_image_holds_the_emulator(image: Image) -> None:
    """compose.yaml runs it."""
    port = closed_port()
    async with image.container("emulator", "--host=127.0.0.1", f"--port={port}", env={}) as container:
        await container.program.printed(f"FCM_ENDPOINT=http://127.0.0.1:{port}\n")
        assert (await get(port, "/emulator/stats"))[0] == 200
        container.stop()
        assert await container.program.ended() == 128 + signal.SIGTERM  # although it is process 1


async def test_a_configuration_that_cannot_be_used_ends_the_container(image: Image) -> None:
    code, output = await image.run(env={"DATABASE_URL": "mysql://root:S3cr3t@localhost/db"})
    assert code == 2
    assert "DATABASE_URL" in output
    assert "S3cr3t" not in output


def test_what_the_image_says_of_itself(image: Image) -> None:
    config = image.config
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["push-listener"]
    assert config["Cmd"] == ["run"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "push-listener", "healthcheck"]
    assert set(config["ExposedPorts"]) == {"8080/tcp", "9091/tcp"}
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in config["Labels"].items()
        if name.startswith("org.opencontainers.image.")
    }
    assert labels["version"] == __version__
    assert labels["revision"] == "abc123"
    assert labels["licenses"] == "MIT"


def test_the_image_holds_the_service_and_its_dependencies_and_nothing_else(image: Image) -> None:
    (packages,) = (image.root / "opt/push-listener/lib").glob("python3.*/site-packages")
    installed = {
        re.sub(r"[-_.]+", "-", each.name.split("-")[0]).lower() for each in packages.glob("*.dist-info")
    }
    pinned = re.findall(
        r"^([a-z0-9-]+)==\S+(?: ; (.*?))? \\$", (PROJECT / "requirements.txt").read_text(), re.M
    )
    assert installed == {name for name, marker in pinned if "win32" not in marker or "!=" in marker} | {
        "push-listener"
    }
    assert not (packages / "tests").exists()
    assert {each.name for each in (image.root / "opt").iterdir()} == {"push-listener"}
    assert not (image.root / "src").exists()


def test_nothing_in_the_image_can_be_changed_by_the_service(image: Image) -> None:
    ours = image.root / "opt/push-listener"
    for path in (ours, *ours.rglob("*")):
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (0, 0), path
        assert path.is_symlink() or not status.st_mode & 0o022, path
