"""Help, usage errors, and failures that every command reports in the same way."""

from __future__ import annotations

from typing import get_args

import click
import pytest

from listener import __version__, config
from listener.cli.main import SUMMARIES, main
from listener.cli.shared import ADOPTIONS
from listener.schema.served import Adoption
from tests.support.cli import invoke
from tests.support.postgres import Database

UNREACHABLE = "postgresql://postgres:S3cr3t@127.0.0.1:1/db"


@pytest.mark.parametrize("name", SUMMARIES)
async def test_every_command_documents_itself_and_its_options(name: str) -> None:
    done = await invoke(None, name, "--help")
    assert done.exit_code == 0
    assert done.output.startswith(f"Usage: main {name} ")
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.help
    assert command.help.split("\n\n")[0] == SUMMARIES[name]
    assert [each.name for each in command.params if isinstance(each, click.Option) and not each.help] == []


def test_the_ways_to_adopt_a_copy_are_those_of_the_service() -> None:
    assert get_args(Adoption) == ADOPTIONS


async def test_help_lists_every_command() -> None:
    done = await invoke(None, "--help")
    assert done.exit_code == 0
    for name, summary in SUMMARIES.items():
        assert f"{name} {summary}" in words(done.output)


def words(text: str) -> str:
    """A text without its line breaks and indentation."""
    return " ".join(text.split())


async def test_version() -> None:
    done = await invoke(None, "--version")
    assert (done.exit_code, done.output) == (0, f"push-listener, version {__version__}\n")


async def test_help_of_run_lists_every_variable() -> None:
    done = await invoke(None, "run", "--help")
    for variable in config.describe():
        default = f" [{variable.default}]" if variable.default else ""
        assert f" {variable.name} {variable.meaning}{default}" in words(done.output)
        assert f"\n{variable.group}:\n" in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["run", "--port", "80"],
        ["migrate", "--discard-data"],
        ["migrate", "--status", "--dry-run"],
        ["migrate", "--down", "0", "--status"],
        ["migrate", "--down", "-1"],
        ["migrate", "--json"],
        ["migrate", "--down", "0", "--json"],
        ["migrate", "--adopt-copy", "expire", "--status"],
        ["migrate", "--adopt-copy", "keep"],
        ["migrate", "--share-new-columns", "--status"],
        ["migrate", "--discard-data", "--dry-run"],
        ["migrate", "--json", "--dry-run"],
        ["send"],
        ["send", "--title", "t"],
        ["send", "--token", "t"],
        ["send", "--token", "t", "--topic", "u", "--title", "x"],
        ["send", "--token", "t", "--fid", "f", "--title", "x"],
        ["send", "--token", "t", "--data", "{"],
        ["send", "--token", "t", "--data", "[1]"],
        ["send", "--token", "t", "--title", "x", "--priority", "urgent"],
        ["send", "--token", "t", "--title", "x", "--wait", "0"],
        ["send", "--user", "nobody", "--title", "x"],
        ["stats", "--days", "0"],
        ["emulator", "--fault", "no_such_fault"],
        ["emulator", "--port", "70000"],
    ],
    ids=" ".join,
)
async def test_wrong_usage(arguments: list[str]) -> None:
    done = await invoke(UNREACHABLE, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: ")
    assert "Error: " in done.stderr


@pytest.mark.parametrize("command", [["migrate"], ["stats"], ["send", "--token", "t", "--title", "x"]])
async def test_without_a_database_address(command: list[str]) -> None:
    done = await invoke(None, *command)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "Error: the configuration cannot be used:\n  DATABASE_URL is not set\n"


@pytest.mark.parametrize(
    "command",
    [
        ["migrate"],
        ["migrate", "--status"],
        ["stats"],
        ["send", "--token", "t", "--title", "x"],
        ["tail"],
        ["tail", "--since", "1h"],
        ["requeue", "--status", "dead"],
    ],
    ids=" ".join,
)
async def test_a_database_that_cannot_be_reached(command: list[str]) -> None:
    done = await invoke(UNREACHABLE, *command)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: the database: ")
    assert "S3cr3t" not in done.stderr
    assert isinstance(done.exception, SystemExit)


@pytest.mark.parametrize("command", [["stats"], ["send", "--token", "t", "--title", "x"]])
async def test_a_database_without_the_tables(blank_database: Database, command: list[str]) -> None:
    done = await invoke(blank_database.dsn, *command)
    assert (done.exit_code, done.stdout) == (1, "")
    assert (
        done.stderr
        == "Error: the database has not been migrated to this version: run push-listener migrate\n"
    )


NEEDING_THE_DATABASE = [
    ["migrate", "--status"],
    ["send", "--token", "t", "--title", "x"],
    ["stats"],
    ["purge", "--older-than", "30d"],
]


@pytest.mark.parametrize("command", NEEDING_THE_DATABASE, ids=" ".join)
async def test_wrong_settings_of_the_service_do_not_stop_a_command_that_works_on_the_database(
    database: Database, command: list[str]
) -> None:
    wrong = {
        "FCM_SERVICE_ACCOUNT_JSON": '{"type": "service_account", "private_key": "S3cr3t"}',
        "GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/key.json",
        "PORT": "none",
        "LEASE": "1",
    }
    done = await invoke(database.dsn, *command, **wrong)
    assert done.exit_code == 0, done.output
