"""Draws the dashboard without a Grafana: the queries of its panels, answered by a real Prometheus.

``python -m tests.support.dashboard_picture FILE`` (scripts/dashboard-picture brings matplotlib along).
"""

from __future__ import annotations

import asyncio
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.support.dashboard import Panel, panels, resolved
from tests.support.monitored import JOB, Monitored, monitored
from tests.support.postgres import Server, Template, programs
from tests.support.service import connect

BEFORE, OUTAGE, AFTER = 45.0, 80.0, 60.0
"""Seconds of load, of an outage of FCM, and of load again."""

SHOWN = (
    "Pushes that end",
    "Alerts over time",
    "Pauses",
    "Due",
    "Age of the oldest due push",
    "Accepted within 5 s",
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


_COLORS = {
    "sent": "tab:green",
    "accepted": "tab:green",
    "dead": "tab:red",
    "pending": "tab:blue",
    "drop_target": "tab:purple",
}
"""Of lines that are good or bad; the others have the usual ones."""


@dataclass(frozen=True)
class Line:
    """One line of a panel."""

    name: str
    values: dict[int, float]
    """By whole seconds since the start."""


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


async def _lines(watched: Monitored, panel: Panel, start: float, end: float) -> list[Line]:
    """What a panel shows, by the queries of its targets."""
    found = []
    for target in panel["targets"]:
        answer = await watched.prometheus.get(
            "/api/v1/query_range",
            query=resolved(target["expr"], _VARIABLES),
            start=f"{start}",
            end=f"{end}",
            step="1",
        )
        for series in answer["data"]["result"]:
            values = {round(float(at) - start): float(value) for at, value in series["values"]}
            found.append(Line(_legend(target["legendFormat"], series["metric"]), values))
    return found


def _legend(pattern: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        pattern = pattern.replace("{{" + name + "}}", value)
    return pattern


def draw(path: Path, drawn: Sequence[tuple[Panel, Sequence[Line]]]) -> None:
    """Draws panels with what they show. Lines that stay 0 are not named."""
    figure = Figure(figsize=(15, 11), layout="constrained")
    for axes, (panel, lines) in zip(figure.subplots(4, 3).flat, drawn, strict=True):
        _draw(axes, panel, lines)
    figure.suptitle("push-listener: FCM answers 503 in the red seconds", fontsize=12)
    figure.savefig(path, dpi=80)


def _draw(axes: Axes, panel: Panel, lines: Sequence[Line]) -> None:
    seconds = range(round(BEFORE + OUTAGE + AFTER) + 1)
    named = sorted((each for each in lines if any(each.values.values())), key=lambda each: each.name)
    defaults = panel["fieldConfig"]["defaults"]
    if defaults["custom"]["stacking"]["mode"] == "normal":
        heights = [[each.values.get(second, 0.0) for second in seconds] for each in named]
        if heights:
            colors = [_COLORS.get(each.name, f"C{number}") for number, each in enumerate(named)]
            axes.stackplot(seconds, *heights, labels=[each.name for each in named], colors=colors)
    else:
        for each in named:
            heights_of = [each.values.get(second, math.nan) for second in seconds]
            axes.plot(seconds, heights_of, linewidth=1.4, label=each.name)
    axes.set_title(panel["title"], fontsize=11, loc="left")
    axes.set_ylabel(_UNITS[defaults["unit"]], fontsize=8)
    axes.set_xlabel("seconds", fontsize=8)
    axes.axvspan(BEFORE, BEFORE + OUTAGE, color="tab:red", alpha=0.08, linewidth=0, zorder=0)
    axes.set_xlim(0, seconds[-1])
    axes.set_ylim(bottom=0, top=1.3 * axes.get_ylim()[1])  # room for the legend
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if named:
        axes.legend(fontsize=7, loc="upper left", ncols=2 if len(named) > 2 else 1, framealpha=0.7)


async def _main(path: Path) -> None:
    version = max(each for each in (15, 16, 17, 18) if programs(each))
    bin_dir = programs(version)
    assert bin_dir is not None
    by_title = {panel["title"]: panel for panel in panels()}
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
            drawn = [(by_title[title], await _lines(watched, by_title[title], start, end)) for title in SHOWN]
    for panel, lines in drawn:
        print(f"{len(lines)} lines: {panel['title']}")
    draw(path, drawn)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
