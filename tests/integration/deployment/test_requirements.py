"""The files that pin what is installed: what is tested is what runs, and none names an address."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.service import PROJECT

LOCK = PROJECT / "requirements.lock"
SERVICE = PROJECT / "requirements.txt"
BUILD = PROJECT / "deploy/docker/requirements-build.txt"
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())

Pin = tuple[str, str, frozenset[str]]
"""Version, marker and hashes of one package."""


def pins(path: Path) -> dict[str, Pin]:
    text = path.read_text().replace("\\\n", " ")
    found: dict[str, Pin] = {}
    for line in text.splitlines():
        if not line.strip() or line.strip().startswith("#"):
            continue
        match = re.fullmatch(
            r"([a-z0-9-]+(?:\[[a-z,]+\])?)==(\S+?)(?: ; ([^-]*?))?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*",
            line,
        )
        assert match, f"{path.name}: {line[:80]}"
        found[match[1]] = (match[2], (match[3] or "").strip(), frozenset(match[4].split()))
    return found


@pytest.mark.parametrize("path", [SERVICE, BUILD], ids=lambda path: str(path.name))
def test_the_smaller_files_are_parts_of_the_lock(path: Path) -> None:
    locked, part = pins(LOCK), pins(path)
    assert part.keys() <= locked.keys()
    for name, (version, _, hashes) in part.items():
        assert (version, hashes) == (locked[name][0], locked[name][2]), name


def test_the_service_gets_what_it_needs_and_no_tools() -> None:
    part = pins(SERVICE)
    needed = {Requirement(each).name for each in PYPROJECT["project"]["dependencies"]}
    assert needed <= part.keys()
    tools = {
        Requirement(each).name
        for extra in PYPROJECT["project"]["optional-dependencies"].values()
        for each in extra
    }
    assert tools & part.keys() == set()


def test_the_image_gets_what_builds_the_package() -> None:
    assert {Requirement(each).name for each in PYPROJECT["build-system"]["requires"]} <= pins(BUILD).keys()


@pytest.mark.parametrize("path", [LOCK, SERVICE, BUILD], ids=lambda path: str(path.name))
def test_no_file_names_an_address_or_a_path_of_a_machine(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"://|find-links|index-url|(^|[ @])/", text, re.MULTILINE)
