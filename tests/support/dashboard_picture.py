"""Draws the dashboard without a Grafana: the queries of its panels, answered by a real Prometheus.

``python -m tests.support.dashboard_picture FILE`` (scripts/dashboard-picture brings matplotlib along).
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.support.dashboard import Panel, panels, resolved
from tests.support.monitored import JOB, Monitored, monitored
from tests.support.postgres import Server, Template, programs
from tests.support.service import connect

BEFORE, OUTAGE, AFTER = 60.0, 60.0, 60.0
"""Seconds of load, of an outage of FCM, and of load again."""

SHOWN = (
    "Pushes that end",
    "Alerts over time",
    "Pauses",
    "Due",
    "Age of the oldest due push",
    "From due to acceptance",
    "Answers",
    "Failures by code",
    "Retries",
    "Dead pushes",
    "Tokens disabled",
    "Receipts",
)
"""The panels that are drawn, in this order."""

_PUSHES = """
with users as materialized (
  select gen_random_uuid() as id, case when random() < 0.03 then 'dead-' else 'phone-' end || gen_random_uuid() as token
    from generate_series(1, 10)
), devices as (
  insert into push_devices (token, user_id, platform)
    select token, id, (array['android', 'android', 'ios', 'web'])[1 + floor(4 * random())::int] from users
    returning user_id
)
insert into push_notifications (user_id, title, priority)
  select user_id, 'Your ride is here', case when random() < 0.3 then 'high' else 'normal' end from devices
"""

_RECEIPTS = """
select record_delivery_receipt(push.id, device.token, case when random() < 0.3 then 'opened' else 'delivered' end)
  from (select id, user_id from push_notifications where status = 'sent' order by sent_at limit 8) as push
  join push_devices as device using (user_id)
"""

_VARIABLES = {"$__rate_interval": "10s", "$job": JOB, "$instance": ".*"}
_UNITS = {
    "s": "seconds",
    "reqps": "per second",
    "short": "",
    "none": "",
    "percentunit": "share",
    "bytes": "bytes",
}


async def _insert(dsn: str) -> None:
    """About 50 pushes a second to devices of three platforms, and receipts for most of those that were sent."""
    async with await connect(dsn) as connection:
        while True:
            await connection.execute(_PUSHES)
            await connection.execute(_RECEIPTS)
            await asyncio.sleep(0.2)  # the rate of the load


async def _range(watched: Monitored, query: str, start: float, end: float) -> list[dict[str, Any]]:
    answer = await watched.prometheus.get(
        "/api/v1/query_range", query=query, start=f"{start}", end=f"{end}", step="1"
    )
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def _legend(pattern: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        pattern = pattern.replace("{{" + name + "}}", value)
    return pattern


async def _draw(axes: Axes, panel: Panel, watched: Monitored, start: float, end: float) -> int:
    """Draws a panel; returns how many lines it has."""
    lines = 0
    for target in panel["targets"]:
        for series in await _range(watched, resolved(target["expr"], _VARIABLES), start, end):
            points = [(float(at) - start, float(value)) for at, value in series["values"]]
            axes.plot(
                *zip(*points, strict=True),
                linewidth=1.2,
                label=_legend(target["legendFormat"], series["metric"]),
            )
            lines += 1
    axes.set_title(panel["title"], fontsize=10, loc="left")
    axes.set_ylabel(_UNITS[panel["fieldConfig"]["defaults"]["unit"]], fontsize=8)
    axes.axvspan(BEFORE, BEFORE + OUTAGE, color="tab:red", alpha=0.08)
    axes.set_xlim(0, end - start)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(fontsize=6, loc="upper left", framealpha=0.6)
    return lines


async def _main(path: Path) -> None:
    version = max(each for each in (15, 16, 17, 18) if programs(each))
    bin_dir = programs(version)
    assert bin_dir is not None
    by_title = {panel["title"]: panel for panel in panels()}
    figure = Figure(figsize=(14, 9), layout="constrained")
    with (
        tempfile.TemporaryDirectory() as place,
        Server(version, bin_dir) as server,
        server.database(Template.MIGRATED) as database,
    ):
        async with monitored(database, Path(place), _insert) as watched:
            await watched.shows(f'push_sends_total{{job="{JOB}",outcome="accepted"}} > 10')
            watched.emulator.add_fault("unavailable", share=0.04)
            watched.emulator.add_fault("invalid_argument", share=0.01)
            start = time.time()
            await asyncio.sleep(BEFORE)
            rule = watched.emulator.add_fault("unavailable")
            await asyncio.sleep(OUTAGE)
            watched.emulator.remove_fault(rule)
            await asyncio.sleep(AFTER)
            end = time.time()
            for axes, title in zip(figure.subplots(3, 3).flat, SHOWN, strict=True):
                print(f"{await _draw(axes, by_title[title], watched, start, end)} lines: {title}")
    figure.suptitle("push-listener: FCM answers 503 in the red seconds", fontsize=11)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
