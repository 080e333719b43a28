from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=1, help="of the chaos: which fault comes when; default: 1")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """From ``pytest tests/chaos --seed N``. The option exists only in runs of tests/chaos alone; others use 1."""
    given: int = request.config.getoption("seed", default=1)
    return given
