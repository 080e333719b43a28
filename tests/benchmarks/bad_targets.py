"""One bad target of each kind beside a steady stream of good pushes to all platforms: how many good ones are late.

    python -m tests.benchmarks.bad_targets --seconds 20

A push to the bad target is inserted each second, and good ones to users with a phone of each platform, to tokens
without one, and to a topic. The service waits as long before a retry as it does by default. A good push is late if FCM
has not accepted it a second after its insert.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID, uuid4

import click
from rich.table import Table

from listener import log
from listener.emulator import Emulator
from tests.benchmarks import rig
from tests.support.service import Rows, rows_of, serving, settings_for

_LATE_S = 1.0
_BAD = "bad-phone"

KINDS = {
    "none": None,
    "Apple 403 BadEnvironmentKeyInToken": "apns_error,reason=BadEnvironmentKeyInToken",
    "Apple 400 BadDeviceToken": "apns_error,reason=BadDeviceToken",
    "Apple 410 Unregistered": "apns_error,reason=Unregistered",
    "Apple 429 TooManyRequests": "apns_error,reason=TooManyRequests",
    "401 THIRD_PARTY_AUTH_ERROR": "third_party_auth",
    "401 APNS_AUTH_ERROR": "apns_auth_error",
    "401 of an unknown code": "unknown_code,status=401",
    "403 of an unknown code": "unknown_code,status=403",
    "404 of an unknown code": "unknown_code,status=404",
    "403 without FcmError": "permission_denied",
    "404 without details": "not_found_no_details",
    "404 as a page": "not_found_html",
    "400 as a page": "bad_request_html",
    "400 as text": "bad_request_text",
    "503": "unavailable",
    "no answer": "reset",
}


@dataclass(frozen=True, slots=True)
class Found:
    """What became of the good pushes beside one kind of bad target."""

    good: int
    late: int
    slowest_s: float
    requests_to_bad: int
    bad_states: str


async def measure(dsn: str, fault: str | None, seconds: float, per_s: int, platform: str | None) -> Found:
    """Good pushes for so many seconds beside one bad target.

    Args:
        dsn: a migrated database without pushes.
        fault: the emulator's rule for the bad target; None: it is as good as the others.
        seconds: how long pushes are inserted.
        per_s: good pushes a second.
        platform: the bad target is a phone of a user, on this platform; None: a token without one.
    """
    async with (
        Emulator() as emulator,
        rows_of(dsn) as rows,
        serving(settings_for(dsn, emulator, retry_min_delay=10, retry_max_delay=3600)),
    ):
        if fault is not None:
            emulator.add_fault(f"{fault},token={_BAD}")
        targets = await _good_targets(rows)
        bad = await _bad_target(rows, platform)
        good_ids, bad_ids = [], []
        async for tick in _ticks(seconds, per_s):
            if tick % per_s == 0:
                bad_ids.append(await rows.add(title="t", **bad))
            good_ids.append(await rows.add(title="t", **targets[tick % len(targets)]))
        await asyncio.sleep(_LATE_S)
        waits = await rows.query(
            "select extract(epoch from coalesce(sent_at, clock_timestamp()) - created_at)::float8 as s "
            "from push_notifications where id = any(%(ids)s)",
            ids=good_ids,
        )
        states = await rows.query(
            "select status, count(*) as n from push_notifications where id = any(%(ids)s) group by 1 order by 1",
            ids=bad_ids,
        )
        taken = [float(row["s"]) for row in waits]
        return Found(
            len(taken),
            sum(each > _LATE_S for each in taken),
            max(taken),
            sum(record.target == _BAD for record in emulator.received),
            ", ".join(f"{row['n']} {row['status']}" for row in states),
        )


async def _good_targets(rows: Rows) -> list[dict[str, object]]:
    targets: list[dict[str, object]] = [
        {"topic": "news"},
        {"device_token": "token-1"},
        {"device_token": "token-2"},
    ]
    for platform in ("ios", "android", "web"):
        for n in range(3):
            user: UUID = uuid4()
            await rows.device(f"{platform}-{n}", user, platform)
            targets.append({"user_id": user})
    return targets


async def _bad_target(rows: Rows, platform: str | None) -> dict[str, object]:
    if platform is None:
        return {"device_token": _BAD}
    user = uuid4()
    await rows.device(_BAD, user, platform)
    return {"user_id": user}


async def _ticks(seconds: float, per_s: int) -> AsyncIterator[int]:
    began = time.monotonic()
    for tick in range(int(seconds * per_s)):
        await asyncio.sleep(max(0.0, began + tick / per_s - time.monotonic()))
        yield tick


@click.command()
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(min=1))
@click.option("--per-s", default=50, show_default=True, type=click.IntRange(1), help="Good pushes a second.")
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Only these. Default: all."
)
def main(seconds: float, per_s: int, kinds: tuple[str, ...]) -> None:
    """How many good pushes are late beside one bad target of each kind."""
    log.configure("text", "critical")  # the log would say of each bad push that it is dead
    table = Table("bad target", "platform", "good", "late", "slowest", "requests to it", "its pushes")
    with rig.postgres() as server:
        for kind in kinds or KINDS:
            for platform in ("ios", None):
                dsn = rig.new_database(server, f"bad_{uuid4().hex[:12]}")
                rig.say(f"{kind}, {platform or 'unknown'}")
                found = asyncio.run(measure(dsn, KINDS[kind], seconds, per_s, platform))
                table.add_row(
                    kind,
                    platform or "unknown",
                    str(found.good),
                    str(found.late),
                    f"{found.slowest_s:.2f} s",
                    str(found.requests_to_bad),
                    found.bad_states,
                )
    rig.console.print(table)


if __name__ == "__main__":
    main()
