"""The time from insert to request is cut where it was measured."""

from __future__ import annotations

import pytest

from tests.benchmarks.stages import STAGES, cut, number_of, read_log

MADE_US = 0x00060A1B2C3D4E5F


def stamped(client: int, number: int) -> str:
    return f"00060a1b-2c3d-4e5f-{client:02x}{number >> 16:02x}-{number & 0xFFFF:04x}be9cbe9c"


def after(ms: float) -> int:
    """Nanoseconds of Unix time."""
    return MADE_US * 1000 + round(ms * 1e6)


def test_an_id_tells_the_client_and_the_number() -> None:
    assert number_of(stamped(15, 70_000)) == (15, 70_000)


def test_pgbench_logs_the_pushes_of_each_client_in_order() -> None:
    log = ["3 0 812 0 1700000000 250000 17", "4 0 900 0 1700000000 260000 0", "3 1 700 0 1700000001 5 2"]
    assert read_log(log) == {
        (3, 1): 1_700_000_000_250_000_000,
        (4, 1): 1_700_000_000_260_000_000,
        (3, 2): 1_700_000_001_000_005_000,
    }


@pytest.mark.parametrize(
    ("committed", "began", "stages"),
    [
        (2.0, 5.0, [2.0, 3.0, 1.0, 0.5]),
        (5.5, 5.0, [5.0, 0.0, 1.0, 0.5]),  # the claim has seen the row before the client was told
        (2.0, -1.0, [0.0, 0.0, 6.0, 0.5]),  # the claim began before the INSERT
    ],
)
def test_each_stage_ends_where_the_next_begins(committed: float, began: float, stages: list[float]) -> None:
    push = stamped(0, 1)
    claim = (after(began), after(6.0), [push])
    found = cut({push: after(6.5), "no stamp": 1}, {(0, 1): after(committed)}, [claim])
    assert found == [pytest.approx(dict(zip(STAGES, stages, strict=True)), abs=1e-3)]
