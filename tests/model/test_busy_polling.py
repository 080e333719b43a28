"""Spin explores every interleaving of a model of the doorbell, and finds a row left behind when one step is missing."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.tools import tool

MODEL = Path(__file__).with_name("busy_polling.pml")

# A third inserter (INSERTERS=3, 24 s of CPU time) shows no mutant that two do not.
BOUNDS = {
    "polls twice, a fault": {"TAKES": 2, "FAULTS": 1},
    "rollbacks, to savepoints too": {"TAKES": 1, "FAULTS": 1, "ROLLBACKS": 1},
    "two faults": {"TAKES": 1, "FAULTS": 2, "NOT_FROZEN": 1},
    "a stranger": {"TAKES": 1, "FAULTS": 0, "STRANGERS": 1},
}

MUTANTS = [
    "FORGETS_RECHECKS",
    "LOOKS_BEFORE_ASKING",
    "LOOKS_BEFORE_RELEASE",
    "NOTES_RECHECKS_LATE",
    "NOTIFIES_NO_PEER",
    "NOTIFIES_PEER_BEFORE",
    "NOTIFIES_PEER_LATER",
    "NO_LOOK_WHEN_ONE_ENDS",
    "NO_RECHECK_AT_A_DEATH",
    "NO_RECHECK_AT_A_STRANGER",
    "NO_RECHECK_ON_LISTEN",
    "NO_WAIT",
    "NO_WATCH",
    "ONE_STATEMENT",
    "TRIES_BEFORE_IT_WRITES",
    "UNLOCKS_BEFORE_IT_IS_VISIBLE",
]

# The processes in the reverse order: the state in which a row is left behind then comes twenty times as soon, before it
# would pay to optimize the verifier.
FIND_SOON = ("-O0", "-DREVERSE")


def search(directory: Path, *options: str, **defined: int) -> str:
    """The output of the verifier that Spin generates from the model, compiled with these options."""
    definitions = [f"-D{name}={value}" for name, value in defined.items()]
    for command in (
        [tool("spin"), "-a", *definitions, str(MODEL)],
        # NOREDUCE: partial-order reduction does not allow processes that stop at any moment. COLLAPSE would save a
        # quarter of 600 MB, and take half as much time again.
        [tool("gcc"), *options, "-w", "-DSAFETY", "-DNOREDUCE", "-o", "pan", "pan.c"],
        ["./pan", "-E", "-m10000", "-w24"],
    ):
        # Each state is looked up at a random place of the table: large pages save a sixth of the time.
        done = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            env={**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def errors(said: str) -> int:
    found = re.search(r"errors: (\d+)", said)
    assert found, said
    return int(found[1])


@pytest.mark.timeout(400)
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS.keys())
def test_no_row_is_left_when_every_listener_sleeps(tmp_path: Path, bounds: dict[str, int]) -> None:
    said = search(tmp_path, "-O2", **bounds)
    assert errors(said) == 0, said
    assert "max search depth too small" not in said
    assert "Search not completed" not in said


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_step_is_needed(tmp_path: Path, mutant: str) -> None:
    needs = {
        "NO_RECHECK_AT_A_DEATH": {"FAULTS": 2, "NOT_FROZEN": 1},
        "NO_RECHECK_AT_A_STRANGER": {"FAULTS": 0, "STRANGERS": 1},
    }.get(mutant, {"FAULTS": 1})
    assert errors(search(tmp_path, *FIND_SOON, TAKES=1, **needs, **{mutant: 1})) == 1


def test_every_step_of_the_model_has_a_mutant() -> None:
    tested = set(re.findall(r"(?:ifdef|ifndef|defined\() ?([A-Z_]+)", MODEL.read_text()))
    assert tested == {
        *MUTANTS,
        "INSERTERS",
        "TAKES",
        "FAULTS",
        "ROLLBACKS",
        "NOT_FROZEN",
        "CANARY",
        "STRANGERS",
    }


def test_everything_comes_to_rest(tmp_path: Path) -> None:
    """The assertion is reached; otherwise it would prove nothing."""
    assert errors(search(tmp_path, *FIND_SOON, TAKES=1, FAULTS=1, CANARY=1)) == 1
