"""What these tests begin with. `make test` does not run them; `make test-deploy` does."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from listener.emulator import Emulator


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator() as started:
        yield started
