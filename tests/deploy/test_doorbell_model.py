"""Spin explores every interleaving of the doorbell's model, in bounds that take too long for `make test`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import spin

BOUNDS = {
    "polls twice, a fault": {"TAKES": 2, "FAULTS": 1},
    "rollbacks, to savepoints too": {"TAKES": 1, "FAULTS": 1, "ROLLBACKS": 1},
    "two faults": {"TAKES": 1, "FAULTS": 2, "NOT_FROZEN": 1},
    "a stranger": {"TAKES": 1, "FAULTS": 0, "STRANGERS": 1},
    "three inserters": {"TAKES": 1, "FAULTS": 1, "INSERTERS": 3},
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS.keys())
def test_no_row_is_left_when_every_listener_sleeps(tmp_path: Path, bounds: dict[str, int]) -> None:
    spin.proves(tmp_path, spin.LARGE, **bounds)
