"""app.json, Procfile and .python-version: what Heroku reads, and mistakes in app.json are found."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from typing import Any

import click
import jsonschema
import pytest

from listener.cli.main import main
from tests.support.mutants import changed, misspelt, retyped, survivors
from tests.support.service import PROJECT

APP: dict[str, Any] = json.loads((PROJECT / "app.json").read_text())
SCHEMA = json.loads((PROJECT / "tests/support/schemas/app-json.schema.json").read_text())
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
PROCFILE = dict(line.split(": ", 1) for line in (PROJECT / "Procfile").read_text().splitlines())


def refused(document: Any) -> bool:
    return not VALIDATOR.is_valid(document)


def test_app_json_is_accepted() -> None:
    assert [error.message for error in VALIDATOR.iter_errors(APP)] == []


def test_misspelt_keys_are_refused_except_names_that_anybody_may_choose() -> None:
    # test_variables.py compares the variables with the settings.
    names = {f"env.{name}" for name in APP["env"]} | {f"formation.{name}" for name in APP["formation"]}
    assert survivors(misspelt(APP), refused) == names


def test_values_of_another_type_are_refused() -> None:
    assert survivors(retyped(APP), refused) == set()


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("stack", "heroku-42"),
        ("formation.web.size", "large"),
        ("formation.web.quantity", -1),
        ("env.METRICS_TOKEN.generator", "random"),
        ("env.DATABASE_URL.required", "yes"),
    ],
)
def test_wrong_values_are_refused(where: str, value: object) -> None:
    assert refused(changed(APP, where, value))


def test_a_dyno_does_not_sleep() -> None:
    assert APP["formation"]["web"]["size"] not in {"eco", "free"}


def test_no_add_on_takes_the_address_of_the_database() -> None:
    assert "addons" not in APP


def test_the_processes_are_commands_that_need_no_installed_package() -> None:
    """`.` cannot be listed in a file with hashes, so nothing installs the command push-listener."""
    assert PROCFILE.keys() == {"release"} | APP["formation"].keys()
    for line in PROCFILE.values():
        python, flag, module, name, *arguments = shlex.split(line)
        assert (python, flag, module) == ("python", "-m", "listener")
        found = main.get_command(click.Context(main), name)
        assert found is not None
        found.make_context(name, arguments)


def test_the_version_of_python_is_supported_and_that_of_the_image() -> None:
    version = (PROJECT / ".python-version").read_text().strip()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]
    base = re.search(
        r"^ARG BASE=\S+/python:(\S+)-slim$", (PROJECT / "deploy/docker/Dockerfile").read_text(), re.M
    )
    assert base
    assert base[1] == version
