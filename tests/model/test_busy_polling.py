"""Spin explores every interleaving of a model of the doorbell, and finds a row left behind when one step is missing.

One inserter shows every mutant, in a tenth of the time of two. ``make test-deploy`` explores larger bounds.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.spin import LARGE, MODEL, SMALL, errors, proves, search

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

# The processes in the reverse order: most mutants leave a row behind sooner then.
FIND_SOON = (SMALL, "-DREVERSE")


@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS.keys())
def test_no_row_is_left_when_every_listener_sleeps(tmp_path: Path, bounds: dict[str, int]) -> None:
    proves(tmp_path, SMALL, INSERTERS=1, **bounds)


def test_no_row_of_two_inserters_is_left(tmp_path: Path) -> None:
    proves(tmp_path, LARGE, INSERTERS=2, TAKES=1, FAULTS=1)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_step_is_needed(tmp_path: Path, mutant: str) -> None:
    needs = {
        "NO_RECHECK_AT_A_DEATH": {"FAULTS": 2, "NOT_FROZEN": 1},
        "NO_RECHECK_AT_A_STRANGER": {"FAULTS": 0, "STRANGERS": 1},
    }.get(mutant, {"FAULTS": 1})
    assert errors(search(tmp_path, *FIND_SOON, INSERTERS=1, TAKES=1, **needs, **{mutant: 1})) == 1


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
    assert errors(search(tmp_path, *FIND_SOON, INSERTERS=1, TAKES=1, FAULTS=1, CANARY=1)) == 1
