"""Every variable in the files of deploy/ is a setting of push-listener, with a value that it accepts."""

from __future__ import annotations

import json
import tomllib

import pytest
import yaml
from pydantic import ValidationError

from listener import config
from listener.config import Settings
from tests.support.service import PROJECT

DEPLOY = PROJECT / "deploy"


def of_fly() -> dict[str, str]:
    variables: dict[str, str] = tomllib.loads((DEPLOY / "fly/fly.toml").read_text())["env"]
    return variables


def of_compose() -> dict[str, str]:
    services = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())["services"]
    ours = [service for service in services.values() if service["image"] == "push-listener"]
    return {name: str(value) for service in ours for name, value in service.get("environment", {}).items()}


def of_kubernetes() -> dict[str, str]:
    deployment = yaml.safe_load((DEPLOY / "kubernetes/deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    secret, _ = yaml.safe_load_all((DEPLOY / "kubernetes/secret.example.yaml").read_text())
    given = {each["name"]: each["value"] for each in container["env"]} | secret["stringData"]
    return {str(name): str(value) for name, value in given.items()}


def of_systemd() -> dict[str, str]:
    lines = (DEPLOY / "systemd/push-listener.service").read_text().splitlines()
    given = [line.removeprefix("Environment=") for line in lines if line.startswith("Environment=")]
    return dict(each.split("=", 1) for each in given)


def of_heroku() -> dict[str, str]:
    described = json.loads((PROJECT / "app.json").read_text())["env"]
    return {name: about.get("value", "") for name, about in described.items()}


ALL = {
    "fly": of_fly,
    "compose": of_compose,
    "kubernetes": of_kubernetes,
    "systemd": of_systemd,
    "heroku": of_heroku,
}


@pytest.mark.parametrize("platform", ALL)
def test_every_variable_is_a_setting(platform: str) -> None:
    variables = ALL[platform]()
    assert variables
    assert variables.keys() <= {variable.name for variable in config.describe()}


@pytest.mark.parametrize("platform", ALL)
def test_every_value_is_accepted(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in config.describe():
        monkeypatch.delenv(variable.name, raising=False)
    variables = {name.lower(): value for name, value in ALL[platform]().items() if value}
    variables.pop("google_application_credentials", None)  # there only where it runs
    variables.setdefault("database_url", "postgresql://postgres@localhost/postgres")
    try:
        Settings(**variables)  # type: ignore[arg-type]
    except ValidationError as error:
        pytest.fail(str(error))
