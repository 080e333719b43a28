"""What importing listener.client brings along, each in an interpreter of its own."""

from __future__ import annotations

import json
import os

import pytest

from listener import client
from tests.support.service import python

SHOW = "\nimport sys, json; print(json.dumps(sorted(sys.modules)))\n"


async def imported(*steps: str) -> list[set[str]]:
    """What is there after each of these."""
    code = "".join(step + SHOW for step in steps)
    async with python("-c", code, env={"PATH": os.environ.get("PATH", "")}) as running:
        assert await running.ended() == 0, running.output
    return [set(json.loads(line)) for line in running.out.splitlines()]


@pytest.mark.parametrize(
    ("steps", "drivers"),
    [
        (
            (
                "from listener.client import Push, PushClient, TelemetryService, PushWorkerClient",
                "from listener.client import Rest; Rest('https://x.supabase.co', 'k')",
            ),
            (set(), {"aiohttp"}),
        ),
        (
            ("from listener.client import enqueue", "from listener.client import Direct; Direct('')"),
            ({"psycopg", "psycopg_pool"}, {"psycopg", "psycopg_pool"}),
        ),
    ],
)
async def test_a_driver_is_imported_when_it_is_needed(
    steps: tuple[str, ...], drivers: tuple[set[str], ...]
) -> None:
    heavy = {
        "psycopg",
        "psycopg_pool",
        "aiohttp",
        "firebase_admin",
        "pydantic",
        "structlog",
        "orjson",
        "tenacity",
    }
    found = await imported(*steps)
    assert [modules & heavy for modules in found] == list(drivers)
    assert {each for each in found[-1] if each.startswith("listener.")} <= {
        f"listener.client{suffix}"
        for suffix in (
            "", ".direct", ".errors", ".loops", ".platforms", ".push", ".push_client", ".push_progress", ".receipts",
            ".rest", ".seldom", ".telemetry", ".telemetry_buffer", ".telemetry_shipper",
            ".transaction", ".transport", ".worker_client",
        )
    }  # fmt: skip


def test_every_public_name_is_there() -> None:
    assert sorted(client.__all__) == sorted(dir(client))
    for name in client.__all__:
        assert getattr(client, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        client.Nothing  # noqa: B018
