"""Every command that a document shows is one that push-listener understands."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest

from listener.cli.main import main
from tests.support.documents import PAGES, commands

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
