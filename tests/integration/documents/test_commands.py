"""Every command that a document shows is one that push-listener understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from listener.cli.main import main
from tests.support.documents import PAGES, commands, text_of

UUID = "01a22924-faac-710f-bb64-72021651ca29"


def _meant(command: click.Command, words: list[str]) -> list[str]:
    """The words, with a value of the right type in the place of what stands for one."""
    found = []
    for before, word in zip(["", *words], words, strict=False):
        option = next((each for each in command.params if before in each.opts), None)
        stands_for_one = word.isupper() and word.isalpha()
        if stands_for_one and option is not None and isinstance(option.type, click.types.UUIDParameterType):
            found.append(UUID)
        elif stands_for_one and option is not None and isinstance(option.type, click.IntRange):
            found.append("1")
        else:
            found.append(word)
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_are_understood(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "supabase").mkdir()
    monkeypatch.chdir(tmp_path)
    wrong = []
    for line in commands(page):
        name, *words = shlex.split(line)
        command = main.get_command(click.Context(main), name)
        assert command is not None
        try:
            command.make_context(name, _meant(command, words))
        except (click.MissingParameter, click.BadOptionUsage):  # a sentence may leave out a value
            pass
        except click.exceptions.Exit:  # --help
            pass
        except click.ClickException as error:
            wrong.append(f"{line}: {error.format_message()}")
    assert wrong == []


def test_every_command_is_in_some_document() -> None:
    shown = {shlex.split(line)[0] for page in PAGES for line in commands(page)}
    assert shown == set(main.list_commands(click.Context(main)))


def _parameters(name: str) -> dict[str, click.Parameter]:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return {option: parameter for parameter in command.params for option in parameter.opts}


def test_the_table_of_the_readme_names_options_that_are_there() -> None:
    for name, cells in re.findall(r"^\| `push-listener ([a-z]+)` \|(.*)$", text_of("README.md"), re.M):
        assert {option.split()[0] for option in re.findall(r"`(--[^`]*)`", cells)} <= set(
            _parameters(name)
        ), name


def test_the_options_of_the_emulator_are_those_of_its_page() -> None:
    """With their defaults."""
    stated = dict[str, str]()
    for names, defaults in re.findall(r"^\| (`--[^|]*) \| ([^|]*?) ?\|", text_of("docs/emulator.md"), re.M):
        options = re.findall(r"--[a-z-]+", names)
        stated |= dict(zip(options, defaults.split(", ") if defaults else [""] * len(options), strict=True))
    emulator = main.get_command(click.Context(main), "emulator")
    assert emulator is not None
    values = emulator.make_context("emulator", []).params
    found = {option: values[each.name or ""] or "" for option, each in _parameters("emulator").items()}
    assert stated == {**{option: str(value) for option, value in found.items()}, "--latency-ms": "0"}
