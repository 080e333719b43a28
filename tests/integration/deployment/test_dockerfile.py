"""The Dockerfile and .dockerignore. tests/deploy builds the image."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.service import PROJECT

DOCKERFILE = PROJECT / "deploy/docker/Dockerfile"
LINES = DOCKERFILE.read_text().splitlines()
INSTRUCTION = re.compile(r"([A-Z]+) .+")
HADOLINT = Path(sys.executable).parent / "hadolint"


def hadolint(text: str) -> str:
    """What hadolint finds; empty if it finds nothing."""
    done = subprocess.run(
        [HADOLINT, "--failure-threshold=style", "-"], input=text, check=False, capture_output=True, text=True
    )
    assert bool(done.returncode) == bool(done.stdout), done.stderr
    return done.stdout


def test_hadolint_finds_nothing() -> None:
    assert hadolint(DOCKERFILE.read_text()) == ""


@pytest.mark.parametrize(
    "number",
    [number for number, line in enumerate(LINES) if INSTRUCTION.fullmatch(line)],
    ids=lambda n: LINES[n][:20],
)
def test_misspelt_instructions_are_refused(number: int) -> None:
    name, _, rest = LINES[number].partition(" ")
    mutant = [*LINES[:number], f"{name[1]}{name[0]}{name[2:]} {rest}", *LINES[number + 1 :]]
    assert hadolint("\n".join(mutant) + "\n")


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("HEALTHCHECK --interval=10s", "HEALTHCHECK --intervall=10s"),
        ("COPY --from=build", "COPY --from=bild"),
        ("EXPOSE 8080 9091", "EXPOSE 80800 9091"),
        ("WORKDIR /src", "WORKDIR src"),
    ],
)
def test_wrong_values_are_refused(line: str, instead: str) -> None:
    text = DOCKERFILE.read_text()
    assert line in text
    assert hadolint(text.replace(line, instead))


def test_what_docker_runs_is_no_shell() -> None:
    """A shell would keep SIGTERM from the service."""
    commands = [line for line in LINES if line.startswith(("ENTRYPOINT", "CMD", "HEALTHCHECK"))]
    assert len(commands) == 3
    assert all(re.search(r' \[("[a-z-]+"(, )?)+\]$', line) for line in commands)


def test_every_file_that_is_copied_is_let_in_and_no_other() -> None:
    copied = {
        source
        for line in LINES
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    ignored = (PROJECT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert all((PROJECT / source).exists() for source in copied)
