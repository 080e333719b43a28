"""deploy/compose/compose.yaml: what Docker Compose itself reads, and mistakes in it are found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import psycopg.conninfo
import pytest
import yaml

from listener import config
from listener.cli.main import main
from listener.emulator.run import DEFAULT_PORT
from tests.support.mutants import Mutant, changed, misspelt, retyped
from tests.support.service import PROJECT

PATH = PROJECT / "deploy/compose/compose.yaml"
# What stands in x-image is read where it is merged in.
COMPOSE: dict[str, Any] = {
    key: value for key, value in yaml.safe_load(PATH.read_text()).items() if key != "x-image"
}
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "push-listener"}
PROGRAM = Path(sys.executable).parent / "docker-compose"


def complaint(document: Any) -> str:
    """What Docker Compose says of a document; empty if it takes it."""
    done = subprocess.run(
        [PROGRAM, "--project-directory", PATH.parent, "--file", "-", "config", "--quiet"],
        input=yaml.safe_dump(document),
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "GOGC": "off"},  # which saves a quarter of the CPU time
    )
    assert bool(done.returncode) == bool(done.stderr), done.stderr
    return done.stderr


def refused(document: Any) -> bool:
    return complaint(document) != ""


def _kind(where: str) -> str:
    """What Docker Compose's schema has for a key: one entry for each service, and for each variable of a service."""
    parts = where.split(".")
    for at, part in enumerate(parts[:-1]):
        if (at == 0 and len(parts) > 2) or part in ("environment", "depends_on", "driver_opts"):
            parts[at + 1] = "*"
    return ".".join(parts)


def kept(mutants: Iterator[Mutant]) -> set[str]:
    """Where a mistake was not noticed, of one mutant of each kind. Several are tried at once: each needs a process."""
    with ThreadPoolExecutor(2) as pool:
        tried = list({_kind(mutant.where): mutant for mutant in mutants}.values())
        found = pool.map(lambda mutant: refused(mutant.document), tried)
        return {mutant.where for mutant, refusal in zip(tried, found, strict=True) if not refusal}


def test_docker_compose_has_nothing_to_say() -> None:
    assert complaint(COMPOSE) == ""
    done = subprocess.run([PROGRAM, "--file", PATH, "config", "--quiet"], check=True, capture_output=True)
    assert done.stdout + done.stderr == b""


def test_misspelt_keys_are_refused_except_names_that_anybody_may_choose() -> None:
    # Services, unless another one depends on them. Variables: test_variables.py compares ours with the settings.
    services = {"push-listener", "alertmanager", "grafana"}
    found = {_kind(where) for where in kept(misspelt(COMPOSE))}
    names = {"services.*.environment.*", "volumes.*.driver_opts.*"}
    assert found == {f"services.{name}" for name in services} | names


def test_values_of_another_type_are_refused() -> None:
    kinds = {where.rpartition(".")[2] for where in kept(retyped(COMPOSE))}
    assert kinds == {"build", "command", "test"}  # they may be texts too


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("services.push-listener.depends_on.migrate.condition", "service_completed"),
        ("services.push-listener.stop_grace_period", "30 s"),
        ("services.push-listener.ports", ["127.0.0.1:8080:80800"]),
        ("services.push-listener.volumes", ["keys:/key:ro"]),
        ("services.postgres.healthcheck.interval", "2 seconds"),
        ("services.grafana.depends_on", ["promtheus"]),
        ("services.grafana.ports", "3000:3000"),
    ],
)
def test_wrong_values_are_refused(where: str, value: object) -> None:
    assert refused(changed(COMPOSE, where, value))


def test_the_process_has_the_time_to_end() -> None:
    defaults = {variable.name: variable.default for variable in config.describe()}
    (seconds,) = (service["stop_grace_period"] for service in OURS.values() if "stop_grace_period" in service)
    assert float(seconds.removesuffix("s")) > float(defaults["SHUTDOWN_GRACE"])


def test_the_commands_are_commands_of_the_entrypoint() -> None:
    commands = {name: service.get("command", ["run"]) for name, service in OURS.items()}
    assert {name: command[0] for name, command in commands.items()} == {
        "migrate": "migrate",
        "emulator": "emulator",
        "push-listener": "run",
    }
    for name, *arguments in commands.values():
        found = main.get_command(click.Context(main), name)
        assert found is not None
        found.make_context(name, list(arguments))


def test_addresses_lead_to_services() -> None:
    ours = SERVICES["push-listener"]["environment"]
    for name in ("push-listener", "migrate"):
        address = psycopg.conninfo.conninfo_to_dict(SERVICES[name]["environment"]["DATABASE_URL"])
        assert address["host"] in SERVICES
        assert address["password"] == SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"]
    host = next(each for each in SERVICES["emulator"]["command"] if each.startswith("--host="))
    assert ours["FCM_ENDPOINT"] == f"http://{host.removeprefix('--host=')}:{DEFAULT_PORT}"
    assert host.removeprefix("--host=") in SERVICES
    written = next(each for each in SERVICES["emulator"]["command"] if each.startswith("--credentials="))
    assert ours["GOOGLE_APPLICATION_CREDENTIALS"] == written.removeprefix("--credentials=")


def test_only_this_machine_reaches_the_ports() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_key_belongs_to_the_user_of_the_image() -> None:
    dockerfile = (PROJECT / "deploy/docker/Dockerfile").read_text()
    options = dict(each.split("=") for each in COMPOSE["volumes"]["key"]["driver_opts"]["o"].split(","))
    assert f"\nUSER {options['uid']}:{options['gid']}\n" in dockerfile


def test_what_is_mounted_is_there() -> None:
    mounted = [
        PATH.parent / volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if volume.startswith("..")
    ]
    assert mounted
    assert [str(path.resolve()) for path in mounted if not path.is_dir()] == []


def test_prometheus_scrapes_the_metrics_port() -> None:
    prometheus = yaml.safe_load((PROJECT / "deploy/prometheus/prometheus.yml").read_text())
    targets = {
        target
        for job in prometheus["scrape_configs"]
        for static in job.get("static_configs", [])
        for target in static.get("targets", [])
    }
    assert f"push-listener:{SERVICES['push-listener']['environment']['METRICS_PORT']}" in targets
