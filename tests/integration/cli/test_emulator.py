"""``push-listener emulator``, as a process of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import aiohttp

from tests.support.service import program


async def test_emulator(tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    async with program(
        "emulator", "--port", "0", "--fault", "unavailable,times=1", "--credentials", str(key),
        env={"PATH": os.environ.get("PATH", ""), "PYTHONUNBUFFERED": "1"},
    ) as running:  # fmt: skip
        await running.printed("/emulator/messages")
        endpoint = next(word for word in running.out.split() if word.startswith("http://"))
        async with aiohttp.ClientSession() as http, http.get(f"{endpoint}/emulator/faults") as answer:
            assert [rule["fault"] for rule in (await answer.json())["faults"]] == ["unavailable"]
        assert key.stat().st_mode & 0o777 == 0o600
        running.signal(signal.SIGINT)
        assert await running.ended() == 0
    assert "Traceback" not in running.output
