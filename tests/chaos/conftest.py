from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=1, help="of the chaos: which fault comes when; default: 1")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """From ``pytest tests/chaos --seed N``; 1 where other tests are run as well."""
    given: int = request.config.getoption("seed", default=1)
    return given
