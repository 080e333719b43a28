"""docs/local.md: the lines for a machine and the job for CI run, against a Postgres and an emulator of their own."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.documents import blocks
from tests.support.postgres import Database
from tests.support.servers import closed_port
from tests.support.service import PROJECT

PAGE = "docs/local.md"
BASH = [text for language, text in blocks(PAGE) if language == "bash"]
(WORKFLOW,) = [yaml.safe_load(text) for language, text in blocks(PAGE) if language == "yaml"]
JOB: dict[str, Any] = WORKFLOW["jobs"]["pushes"]


async def _run(script: str, database: Database, ports: tuple[int, int], home: Path, **variables: str) -> str:
    """What a script prints, with other ports and another database. It and all that it starts end together."""
    web, fcm = ports
    script = re.sub(r"DATABASE_URL=\S+", f"DATABASE_URL='{database.dsn}'", script)
    script = script.replace("9199", str(fcm)).replace("/tmp/", f"{home}/")
    script = script.replace("push-listener emulator", f"push-listener emulator --port {fcm}")
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-e",
        "-c",
        f"trap 'kill $(jobs -p)' EXIT\n{script}",
        cwd=PROJECT,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT),
            "HOME": str(home),
            "PORT": str(web),
            **{
                name: value.replace("9199", str(fcm)).replace("/tmp/", f"{home}/")
                for name, value in variables.items()
            },
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


async def test_on_a_machine(database: Database, free_ports: tuple[int, int], tmp_path: Path) -> None:
    service, second = BASH
    started = service.replace("supabase start\n", "").replace("push-listener run", "push-listener run &")
    # A person opens the second terminal when the first one shows that the service works.
    waiting = "until push-listener healthcheck --ready; do sleep 0.5; done\n"
    said = await _run(started + waiting + second, database, free_ports, tmp_path)
    assert '"title": "Hello"' in said


async def test_the_job(database: Database, free_ports: tuple[int, int], tmp_path: Path) -> None:
    script = "\n".join(step["run"] for step in JOB["steps"] if step.get("name"))
    variables = {**JOB["env"], "DATABASE_URL": database.dsn}
    assert "Hello" in await _run(script, database, free_ports, tmp_path, **variables)


def test_the_job_is_one_that_github_takes() -> None:
    """Of the workflow's syntax, the names that are used here."""
    assert set(WORKFLOW) == {"name", True, "permissions", "jobs"}  # YAML 1.1 reads "on" as true
    assert set(JOB) == {"runs-on", "timeout-minutes", "services", "env", "steps"}
    assert set(JOB["services"]["postgres"]) == {"image", "env", "ports", "options"}
    assert all(("uses" in step) != ("run" in step) for step in JOB["steps"])
    assert {name for step in JOB["steps"] for name in step} == {"uses", "with", "run", "name", "if"}


@pytest.fixture
def free_ports() -> tuple[int, int]:
    return closed_port(), closed_port()
