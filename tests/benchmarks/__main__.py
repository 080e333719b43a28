"""All that is to be reached, measured in one run and beside other queues.

python -m tests.benchmarks --quick
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import orjson
import psycopg
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from listener.demo.embedded import EmbeddedPostgres
from tests.benchmarks import (
    backlog,
    broadcast,
    compare,
    drain,
    faults,
    history,
    horizon,
    idle,
    inserts,
    latency,
    queues,
    rig,
    scale,
    takeover,
)
from tests.benchmarks.calibration import calibrate
from tests.benchmarks.options import Options, setting
from tests.benchmarks.report import Fraction, Line, markdown, table

PARTS: dict[str, Callable[[Options], list[Line]]] = {
    "drain": drain.part,
    "latency": latency.part,
    "backlog": backlog.part,
    "inserts": inserts.part,
    "idle": idle.part,
    "history": history.part,
    "broadcast": broadcast.part,
    "horizon": horizon.part,
    "scale": scale.part,
    "takeover": takeover.part,
    "faults": faults.part,
}
_ONCE = ("backlog", "idle", "history", "broadcast", "horizon")
_LIBRARIES = ("psycopg", "aiohttp", "uvloop", "orjson", "pydantic")


def run_part(name: str, options: Options, server: EmbeddedPostgres) -> Fraction:
    """One part; whatever it fails of is what it has found. The server is for the calibration."""
    began, load = time.monotonic(), os.getloadavg()[0]
    calibration = calibrate(server)
    try:
        lines, failure = PARTS[name](options), None
    except Exception as error:
        rig.errors.print(traceback.format_exc(), markup=False)
        lines, failure = [], f"{type(error).__name__}: {error}"
    return Fraction(name, time.monotonic() - began, load, lines, failure, calibration)


def machine(server: EmbeddedPostgres, peers: tuple[str, ...]) -> dict[str, Any]:
    """What the figures are of."""
    with psycopg.connect(server.uri) as conn:
        row = conn.execute("select current_setting('server_version')").fetchone()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "postgres": str(row[0]) if row else "",
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "peers": queues.peer_versions() if peers else {},
        "load": list(os.getloadavg()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _described(facts: dict[str, Any], options: Options) -> str:
    """The machine and the run in a sentence."""
    runs = f"{options.runs} runs ({', '.join(_ONCE)}: one)" if options.runs > 1 else "one run"
    return (
        f"{facts['cores']} cores of an {facts['processor']}, {facts['system']}, Python {facts['python']}, "
        f"PostgreSQL {facts['postgres']}, load average {facts['load'][0]:.1f} before it began; "
        f"{facts['date'][:10]}; {runs}. What was taken several times is the median (memory, and times after "
        "a fault: the worst), with the least and the most in brackets. A line that depends on nothing holds on any "
        "machine."
    )


def options_as_dict(options: Options) -> dict[str, Any]:
    """For JSON: how it is run."""
    return {
        "runs": options.runs,
        "quick": options.quick,
        "latency_ms": options.latency_ms,
        "tls": options.tls,
        "peers": list(options.peers),
        "settings": dict(options.settings),
    }


def as_json(facts: dict[str, Any], options: Options, parts: list[Fraction]) -> bytes:
    """Everything: the machine, how it was run, each figure with what it was of each run."""
    found = {
        "machine": facts,
        "options": options_as_dict(options),
        "parts": [part.as_dict() for part in parts],
    }
    return orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n"


def _earlier(_: click.Context, __: click.Parameter, file: Path | None) -> dict[str, Any] | None:
    """What an earlier run has written."""
    if file is None:
        return None
    try:
        found: dict[str, Any] = orjson.loads(file.read_bytes())
    except ValueError as error:
        raise click.BadParameter(f"{file} is no JSON: {error}") from None
    return found


def _show_compared(old: dict[str, Any], new: dict[str, Any]) -> None:
    lines = compare.compare(old, new)
    rig.console.print(compare.table(lines, f"beside the run of {old['machine']['date']}"))
    for what in compare.differences(old["machine"], new["machine"]):
        rig.console.print(f"the machine differs, so only ratios within a run compare: {what}", markup=False)
    for what in compare.missing(old, new):
        rig.console.print(what, markup=False)
    worse = [line.what for line in lines if line.verdict == "worse"]
    rig.console.print(f"worse: {'; '.join(worse) or 'nothing'}", markup=False)


def _writable(_: click.Context, __: click.Parameter, file: Path | None) -> Path | None:
    """Found out before half an hour is spent, not after; what is in the file stays there until then."""
    try:
        if file is not None:
            file.open("ab").close()
    except OSError as error:
        raise click.BadParameter(f"{file} cannot be written: {error.strerror}") from None
    return file


_FILE = click.Path(dir_okay=False, path_type=Path)


def _with_peers() -> bool:
    try:
        queues.prepare_peers()
    except rig.BenchmarkFailed as error:
        rig.say(f"without the peers: {error.message}")
        return False
    return True


@click.command()
@click.option("--quick", is_flag=True, help="A quarter of an hour instead of an hour: one run, fewer rows.")
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Default: all of them.")
@click.option("--runs", type=click.IntRange(1), help="Of each measurement; default 3, with --quick 1.")
@click.option(
    "--latency",
    default=50.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Of FCM, ms: in drain, backlog, inserts and scale.",
)
@click.option(
    "--tls/--no-tls",
    default=None,
    help="In drain, latency and backlog, the others go without. Default: the drain both ways, else without.",
)
@click.option("--peers/--no-peers", default=True, show_default=True, help="Other queues beside.")
@setting
@click.option("--json", "json_file", type=_FILE, callback=_writable, help="The figures of each run.")
@click.option("--markdown", "markdown_file", type=_FILE, callback=_writable, help="The table.")
@click.option(
    "--compare",
    "old",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    callback=_earlier,
    help="What --json has written of an earlier run: says what has become worse since.",
)
def main(
    quick: bool,
    only: tuple[str, ...],
    runs: int | None,
    latency: float,
    tls: bool | None,
    peers: bool,
    settings: dict[str, str],
    json_file: Path | None,
    markdown_file: Path | None,
    old: dict[str, Any] | None,
) -> None:
    """Measures what push-listener is to reach, beside other queues, on a Postgres and a stand-in for FCM of its own.

    Each part is a module of tests.benchmarks as well, with options of its own. The exit code is 1 when a part could not
    be measured; a goal that is missed is shown, and changes nothing. The files are written after each part.

    --set reaches all parts but history, horizon and faults. Settings of push-listener and proxies in the environment
    reach nothing that is measured.

    Needs Linux, and for history 25 GB of disk (with --quick 2.5 GB) where temporary files are made.
    """
    beside = queues.PEERS if peers and _with_peers() else ()
    options = Options(runs or (1 if quick else 3), quick, latency, tls, beside, settings)
    if old is not None:
        try:
            compare.check(old, options_as_dict(options))
        except compare.NotComparable as why:
            raise click.BadParameter(str(why), param_hint="--compare") from None
    parts: list[Fraction] = []
    with (
        rig.postgres() as server,
        Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=rig.errors
        ) as shown,
    ):
        facts = machine(server, beside)
        names = [name for name in PARTS if name in (only or PARTS)]
        for number, name in enumerate(names, 1):
            task = shown.add_task(f"{name} ({number} of {len(names)})", total=None)
            parts.append(run_part(name, options, server))
            shown.remove_task(task)
            if json_file is not None:
                json_file.write_bytes(as_json(facts, options, parts))
            if markdown_file is not None:
                markdown_file.write_text(f"{_described(facts, options)}\n\n{markdown(parts)}")
    rig.console.print(table(parts, _described(facts, options)))
    if old is not None:
        _show_compared(old, orjson.loads(as_json(facts, options, parts)))
    for part in parts:
        if part.failure is not None:
            rig.console.print(f"{part.name} failed: {part.failure}", style="red", markup=False)
    sys.exit(1 if any(part.failure is not None for part in parts) else 0)


if __name__ == "__main__":
    # What has been started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
