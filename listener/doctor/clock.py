"""Whether the clocks of this machine and of the database agree."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import LiteralString

from listener.doctor.findings import Finding, Group
from listener.doctor.looking import Connection, value

_GROUP = Group("clock")

WARNING_S = 1.0
FAULT_S = 60.0
"""From this difference on, Google may refuse the signed request for an access token as too old or from the future.
Google does not document its limit; this value is inferred."""

_LOOKS = 3
_NOW: LiteralString = "select extract(epoch from pg_catalog.clock_timestamp())::float8"


@dataclass(frozen=True, slots=True)
class Offset:
    """How far the database's clock is ahead, in seconds."""

    ahead: float
    doubt: float
    """Half of the round trip: the offset may be this much more or less."""


def measure(conn: Connection) -> Offset:
    """Measures several times, and returns the offset with the shortest round trip. Raises psycopg.Error."""
    looks = []
    for _ in range(_LOOKS):
        began, before = time.time(), time.perf_counter()
        there = float(value(conn, _NOW))
        half = (time.perf_counter() - before) / 2
        looks.append(Offset(there - (began + half), half))
    return min(looks, key=lambda look: look.doubt)


def judge(offset: Offset) -> Finding:
    """Pure."""
    certain = abs(offset.ahead) - offset.doubt
    direction = "behind" if offset.ahead > 0 else "ahead of"
    text = f"this machine's clock is {abs(offset.ahead):,.1f} s {direction} the database's"
    remedy = "let NTP set both (timedatectl set-ntp true, chrony)"
    if certain > FAULT_S:
        return _GROUP.fault(f"{text}: Google refuses access tokens to a machine whose clock is wrong", remedy)
    if certain > WARNING_S:
        return _GROUP.warning(
            f"{text}; push-listener reckons with the database's clock, and the times in logs and metrics differ",
            remedy,
        )
    return _GROUP.ok(f"this machine and the database differ by {1000 * abs(offset.ahead):.0f} ms")
