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

BEFORE, OUTAGE, AFTER = 45.0, 40.0, 60.0
"""Seconds of load, of an outage of FCM, and of load again."""

SHOWN = (
    "Pushes that end",
    "Alerts over time",
    "Age of the oldest due push",
    "Due",
    "Answers",
    "Pauses",
    "From due to acceptance",
    "Duration of a request",
    "Duration of statements",
)
"""The panels that are drawn, in this order."""

_VARIABLES = {"$__rate_interval": "10s", "$job": JOB, "$instance": ".*"}
_UNITS = {
    "s": "seconds",
    "reqps": "per second",
    "short": "",
    "none": "",
    "percentunit": "share",
    "bytes": "bytes",
}


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
        async with monitored(database, Path(place)) as watched:
            await watched.shows(f'push_sends_total{{job="{JOB}",outcome="accepted"}} > 10')
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
