"""deploy/systemd/push-listener.service: what systemd reads, and mistakes in it are found.

``systemd-analyze verify`` exits with 0 whatever it finds, so what counts is that it says nothing.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from listener import config
from tests.support.service import PROJECT
from tests.support.tools import tool

PATH = PROJECT / "deploy/systemd/push-listener.service"
LINES = PATH.read_text().splitlines()
SETTING = re.compile(r"([A-Za-z]+)=(.*)")


def verify(units: Mapping[str, Iterable[str]], directory: Path) -> dict[str, str]:
    """What systemd says of each unit that it finds fault with. All are read at once, because each start costs time."""
    systemd_analyze = tool("systemd-analyze")
    for name, lines in units.items():
        # The program is not installed here, and systemd looks for it. The path of Python may have a space in it.
        text = "\n".join(lines).replace("/opt/push-listener/bin/push-listener", "/bin/sh")
        (directory / f"{name}.service").write_text(text)
    paths = [directory / f"{name}.service" for name in units]
    done = subprocess.run(
        [systemd_analyze, "verify", "--man=no", *paths], check=False, capture_output=True, text=True
    )
    faults: dict[str, str] = {}
    for line in (done.stdout + done.stderr).splitlines():
        for name in units:
            if re.search(rf"(^|/|: |Unit ){name}\.service\b", line):
                faults[name] = line
                break
        else:
            pytest.fail(f"systemd says of no unit: {line}")
    return faults


def settings() -> list[tuple[int, str, str]]:
    """Number of the line, name and value of every setting."""
    return [
        (number, match[1], match[2])
        for number, line in enumerate(LINES)
        if (match := SETTING.fullmatch(line))
    ]


def with_line(number: int, line: str) -> list[str]:
    return [*LINES[:number], line, *LINES[number + 1 :]]


def value_of(name: str) -> str:
    (value,) = (value for _, each, value in settings() if each == name)
    return value


def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    assert verify({"push-listener": LINES}, tmp_path) == {}


def test_misspelt_names_are_refused(tmp_path: Path) -> None:
    units = {
        f"mutant-{number}": with_line(number, f"{name[:-2]}{name[-1]}{name[-2]}={value}")
        for number, name, value in settings()
        if name[-1] != name[-2]
    }
    units |= {
        f"mutant-{number}": with_line(number, f"{name}x={value}")
        for number, name, value in settings()
        if name[-1] == name[-2]
    }
    units |= {
        f"mutant-{number}": with_line(number, f"[X{line[1:]}")
        for number, line in enumerate(LINES)
        if line.startswith("[")
    }
    assert len(units) == len(settings()) + 3
    faults = verify(units, tmp_path)
    assert {LINES[int(name.removeprefix("mutant-"))] for name in units.keys() - faults.keys()} == set()


def test_wrong_values_are_refused(tmp_path: Path) -> None:
    units = {f"mutant-{number}": with_line(number, f"{name}=/x y?") for number, name, _ in settings()}
    faults = verify(units, tmp_path)
    accepted = {name for number, name, _ in settings() if f"mutant-{number}" not in faults}
    # A path may be any, and systemd says nothing of capabilities that it does not know. Both are empty here.
    assert accepted == {
        "Description",
        "EnvironmentFile",
        "CapabilityBoundingSet",
        "AmbientCapabilities",
        "WantedBy",
    }
    assert value_of("CapabilityBoundingSet") == value_of("AmbientCapabilities") == ""


@pytest.mark.parametrize(
    ("line", "enabled"),
    [
        ("WantedBy=multi-user.target", True),
        ("WantedyB=multi-user.target", False),
        ("WantedBy=multi-user.targt", False),
    ],
)
def test_it_can_be_enabled(tmp_path: Path, line: str, enabled: bool) -> None:
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    (units / PATH.name).write_text(PATH.read_text().replace("WantedBy=multi-user.target", line))
    systemctl = tool("systemctl")
    subprocess.run([systemctl, f"--root={tmp_path}", "enable", PATH.name], check=False, capture_output=True)
    assert (units / "multi-user.target.wants" / PATH.name).is_symlink() == enabled


def test_the_process_has_the_time_to_end() -> None:
    defaults = {variable.name: variable.default for variable in config.describe()}
    assert float(value_of("TimeoutStopSec")) > float(defaults["SHUTDOWN_GRACE"])


def test_it_is_started_again_unless_its_configuration_is_wrong() -> None:
    assert value_of("Restart") == "always"
    assert value_of("RestartPreventExitStatus") == "2"


def test_the_key_is_where_the_service_looks_for_it() -> None:
    name, _, _ = value_of("LoadCredential").partition(":")
    assert value_of("Environment") == f"GOOGLE_APPLICATION_CREDENTIALS=%d/{name}"
