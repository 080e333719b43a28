"""What these tests begin with. `make test` does not run them; `make test-deploy` does."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from listener.emulator import Emulator
from tests.support.monitored import SCALE, Monitored, Say


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator() as started:
        yield started


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Prints a timeline although pytest captures what tests print."""

    def _say(title: str, watched: Monitored) -> None:
        with capsys.disabled():
            print(f"\n{title} (durations of the rules / {SCALE})\n{watched.timeline}")

    return _say
