"""``push-listener run``: how it starts and how it refuses to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from listener.emulator import Emulator
from tests.support.postgres import Database
from tests.support.service import environment, program, python, run


async def test_run_reports_every_fault_of_its_configuration_at_once() -> None:
    env = {
        "PATH": os.environ.get("PATH", ""),
        "DATABASE_URL": "mysql://root:S3cr3t@localhost/db",
        "LISTEN_DATABASE_URL": "postgresql://root:S3cr3t@localhost:S3cr3t/db",
        "FCM_SERVICE_ACCOUNT_JSON": '{"type": "service_account", "private_key": "S3cr3t"}',
        "GOOGLE_APPLICATION_CREDENTIALS": "/S3cr3t/key.json",
        "FCM_ENDPOINT": "S3cr3t",
        "FCM_PROJECT_ID": "S3cr3t!",
        "PORT": "S3cr3t",
        "METRICS_TOKEN": "S3cr3t",
        "LOG_LEVEL": "S3cr3t",
        "MAX_IN_FLIGHT": "0",
        "LEASE": "10",
        "RETRY_MAX_DELAY": "1",
        "FCM_CONNECT_TIMEOUT": "16",
    }
    code, out, err = await run("run", env=env, forked=True)
    assert (code, out) == (2, "")
    head, *faults = err.splitlines()
    assert head == "Error: the configuration cannot be used:"
    assert {line.split()[0].rstrip(":") for line in faults} == env.keys() - {"PATH"}
    assert "S3cr3t" not in err


async def test_run_reports_faults_of_settings_and_credentials_at_once(tmp_path: Path) -> None:
    (tmp_path / "k").write_text('{"type": "S3cr3t"}')
    env = {
        "PATH": os.environ["PATH"],
        "LEASE": "1",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "k"),
    }
    code, _, err = await run("run", env=env, forked=True)
    assert code == 2
    assert [line.split()[0] for line in err.splitlines()[1:]] == [
        "DATABASE_URL",
        "LEASE",
        "FCM_SERVICE_ACCOUNT_JSON",
    ]


async def test_run_without_credentials(database: Database, emulator: Emulator, tmp_path: Path) -> None:
    env = environment(
        database.dsn,
        emulator,
        fcm_service_account_json="",
        google_application_credentials=str(tmp_path / "k"),
    )
    (tmp_path / "k").write_text('{"type": "S3cr3t"}')
    code, out, err = await run("run", env=env, forked=True)
    assert (code, out) == (2, "")
    assert err.startswith("Error: the configuration cannot be used:\n  FCM_SERVICE_ACCOUNT_JSON / GOOGLE_")
    assert "Traceback" not in err


_WITH_FILES = """
import resource
from listener.cli import main
resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {1}))
main.main(["run"])
"""


@pytest.mark.parametrize(("soft", "hard", "in_flight"), [(160, 4096, 1250), (160, 160, 60)])
async def test_max_in_flight_is_lowered_to_the_limit_of_open_files(
    database: Database, emulator: Emulator, soft: int, hard: int, in_flight: int
) -> None:
    async with python(
        "-c", _WITH_FILES.format(soft, hard), env=environment(database.dsn, emulator), forked=True
    ) as running:
        assert (await running.said("ready"))["in_flight_at_most"] == in_flight
        assert any(r["event"] == "MAX_IN_FLIGHT lowered" for r in running.records) == (in_flight < 1250)


async def test_the_requests_of_http2_share_connections(database: Database, emulator: Emulator) -> None:
    env = environment(database.dsn, emulator, fcm_endpoint="https://127.0.0.1:1")
    async with python("-c", _WITH_FILES.format(113, 113), env=env, forked=True) as running:
        assert (await running.said("ready"))["in_flight_at_most"] == 1250


async def test_a_limit_of_open_files_that_is_too_low(database: Database, emulator: Emulator) -> None:
    async with python(
        "-c", _WITH_FILES.format(90, 90), env=environment(database.dsn, emulator), forked=True
    ) as running:
        assert await running.ended() == 2
        assert "MAX_IN_FLIGHT: the limit of open files allows 0; raise it (ulimit -n)" in running.err


async def test_misspelt_variables_are_told_at_the_start(database: Database, emulator: Emulator) -> None:
    env = environment(database.dsn, emulator, loglevel="debug", max_inflight="5", logname="somebody")
    async with program("run", env=env, forked=True) as running:
        await running.said("ready")
        told = [r for r in running.records if r["event"] == "unknown variable: is it misspelt?"]
        assert [(r["variable"], r["known"]) for r in told] == [
            ("LOGLEVEL", "LOG_LEVEL"),
            ("MAX_INFLIGHT", "MAX_IN_FLIGHT"),
        ]
