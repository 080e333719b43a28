"""deploy/fly/fly.toml: what flyctl reads, and mistakes in it are found."""

from __future__ import annotations

import re
import shlex
import tomllib
from typing import Any

import click
import pytest
from pydantic import ValidationError

from listener import config
from listener.cli.main import main
from tests.support.fly import FlyToml
from tests.support.mutants import changed, misspelt, retyped, survivors
from tests.support.service import PROJECT

PATH = PROJECT / "deploy/fly/fly.toml"
TABLES: dict[str, Any] = tomllib.loads(PATH.read_text())
FLY = FlyToml.model_validate(TABLES)


def refused(document: Any) -> bool:
    try:
        FlyToml.model_validate(document)
    except ValidationError:
        return True
    return False


def test_misspelt_keys_are_refused_except_names_that_anybody_may_choose() -> None:
    # test_variables.py compares the variables with the settings. Checks may have any name.
    assert survivors(misspelt(TABLES), refused) == {
        "checks.alive",
        "checks.ready",
        "env.LOG_FORMAT",
        "env.METRICS_PORT",
    }


def test_values_of_another_type_are_refused() -> None:
    assert survivors(retyped(TABLES), refused) == set()


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("kill_signal", "TERM"),
        ("kill_timeout", "30"),
        ("kill_timeout", 30),
        ("deploy.strategy", "roling"),
        ("deploy.release_command_timeout", 600),
        ("deploy.wait_timeout", "5 minutes"),
        ("checks.ready.type", "htp"),
        ("checks.ready.path", "readyz"),
        ("checks.ready.interval", 15),
        ("checks.ready.port", "8080"),
        ("checks.alive.port", 80800),
        ("checks.alive.method", "put"),
        ("checks.alive.processes", ["ap"]),
        ("metrics.0.port", "9091"),
        ("metrics.0.path", "metrics"),
        ("metrics.0.processes", ["web"]),
        ("restart.0.policy", "allways"),
        ("vm.0.size", "shared-cpu-3x"),
        ("vm.0.memory", "512"),
    ],
)
def test_wrong_values_are_refused(where: str, value: object) -> None:
    assert refused(changed(TABLES, where, value))


def test_it_has_no_http_service() -> None:
    """It would stop the machines, because nobody calls them."""
    assert {"http_service", "services"} & TABLES.keys() == set()
    assert refused({**TABLES, "http_service": {"internal_port": 8080}})


def test_a_process_has_the_time_to_end() -> None:
    defaults = {variable.name: variable.default for variable in config.describe()}
    seconds = re.fullmatch(r"(\d+)s", FLY.kill_timeout)
    assert seconds
    assert int(seconds[1]) > float(defaults["SHUTDOWN_GRACE"])


def test_the_commands_are_commands_of_the_entrypoint() -> None:
    for command in (FLY.deploy.release_command, *FLY.processes.values()):
        name, *arguments = shlex.split(command)
        found = main.get_command(click.Context(main), name)
        assert found is not None
        found.make_context(name, arguments)


def test_the_ports_are_those_of_the_service() -> None:
    defaults = {variable.name: variable.default for variable in config.describe()}
    assert {check.port for check in FLY.checks.values()} == {int(defaults["PORT"])}
    assert {metrics.port for metrics in FLY.metrics} == {int(FLY.env["METRICS_PORT"])}
    assert {check.path for check in FLY.checks.values()} == {"/healthz", "/readyz"}


def test_the_files_are_found_from_where_it_lies() -> None:
    for name in (FLY.build.dockerfile, FLY.build.ignorefile):
        assert name
        assert (PATH.parent / name).is_file()
