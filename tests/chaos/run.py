"""One run: writers write, faults happen, everything is healed, and the checker goes over every row."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row
from rich.console import Console
from rich.table import Table

from tests.chaos.checker import Evidence, Findings, check
from tests.chaos.faults import ACTS, SLOTS, Event, Stage, perform, plan, start
from tests.chaos.world import LEASE, World, world
from tests.chaos.writers import Ledger, Phones, Writer, bursty, operator, register_users, steady

# The last pause because of a refused permission, the last lease, and a start that is made gentle by the dead.
_PATIENCE = LEASE + 120.0

_UNFINISHED = """
select count(*) from push_notifications
  where next_attempt_at is not null and status in ('pending', 'processing', 'failed')
"""
_ROWS = """
select id, status, retry_count, error_code, last_error, next_attempt_at,
    extract(epoch from expires_at)::float8 as expires_at
  from push_notifications
"""
_LOGS = """
select push_id, device_token, status, details from push_delivery_logs
  where not details ? 'receipt' order by created_at, ctid
"""
_CHANGES = """
select extract(epoch from at)::float8 as at, push_id, old_status, status, worker, attempt,
    extract(epoch from old_due)::float8 as old_due, extract(epoch from due)::float8 as due, lost
  from chaos_audit order by n
"""


@dataclass(slots=True)
class Result:
    """What a run was, and what was found."""

    seed: int
    events: list[Event]
    findings: Findings
    ledger: Ledger
    seconds: float
    log_lines: int


async def run(
    seed: int,
    seconds: float,
    say: Callable[[str], object] = lambda _: None,
    refused_pause: float | None = None,
) -> Result:
    """Faults for so many seconds, and then as long as it takes to finish every row.

    ``refused_pause``: for how long a listener sends nothing after a refused permission; None: half a minute, as always.
    """
    began = time.monotonic()
    async with world(seed, refused_pause=refused_pause) as made:
        ledger = Ledger()
        dsn = made.database.dsn
        with psycopg.connect(dsn, autocommit=True) as conn:
            register_users(conn)
        stage = Stage(made, [await start(made, slot) for slot in range(SLOTS)])
        phones = Phones(dsn, ledger, seed)
        made.on_request = phones.heard
        writers = [
            Writer(dsn, ledger, seed + 1, steady),
            Writer(dsn, ledger, seed + 2, bursty),
            Writer(dsn, ledger, seed + 3, operator),
            phones,
        ]
        for writer in writers:
            writer.start()
        try:
            async with asyncio.TaskGroup() as group:
                for step in plan(seed, seconds):
                    group.create_task(_one(stage, step, say))
        finally:
            for writer in writers:
                writer.ended.set()
            for writer in writers:
                await asyncio.to_thread(writer.join, 30)
        faults = [repr(writer.fault) for writer in writers if writer.fault is not None or writer.is_alive()]
        say(f"{time.monotonic() - began:5.1f} s  all is healed; {len(ledger.committed)} rows committed")
        await _finish(made, say)
        for listener in list(made.running):
            await listener.end()
        evidence = _evidence(made, ledger, stage.events)
        findings = await asyncio.to_thread(check, evidence)
        findings.violations += [f"a writer failed: {fault}" for fault in faults]
        lines = sum(process.program.err.count("\n") for process in made.processes)
        return Result(seed, stage.events, findings, ledger, time.monotonic() - began, lines)


async def _one(stage: Stage, step: Any, say: Callable[[str], object]) -> None:
    await perform(stage, step)
    say(f"{step.at:5.1f} s  {step.fault} ({step.seconds:g} s)")


async def _finish(made: World, say: Callable[[str], object]) -> None:
    deadline = time.monotonic() + _PATIENCE
    async with await made.admin() as conn:
        while time.monotonic() < deadline:
            row = await (await conn.execute(_UNFINISHED)).fetchone()
            if row == (0,):
                return
            say(f"         {row[0] if row else '?'} rows to go")
            await asyncio.sleep(1.0)


def _evidence(made: World, ledger: Ledger, events: list[Event]) -> Evidence:
    with psycopg.connect(made.database.dsn, row_factory=dict_row) as conn:
        return Evidence(
            ledger=ledger,
            exchanges=list(made.fcm.exchanges),
            processes=made.processes,
            events=events,
            workers={
                row["id"]: row["name"]
                for row in conn.execute("select id, name from chaos_workers").fetchall()
            },
            rows={row["id"]: row for row in conn.execute(_ROWS).fetchall()},
            logs=conn.execute(_LOGS).fetchall(),
            audit=conn.execute(_CHANGES).fetchall(),
        )


def show(result: Result, console: Console) -> None:
    """The table of faults survived, and the counts."""
    found = result.findings
    happened = Counter(event.fault for event in result.events)
    table = Table(title=f"Faults survived (seed {result.seed}, {result.seconds:.0f} s)", title_justify="left")
    table.add_column("fault")
    table.add_column("times", justify="right")
    for fault in ACTS:
        table.add_row(fault, str(happened[fault]))
    console.print(table)
    counts = Table(title="Rows", title_justify="left", show_header=False)
    counts.add_column("what")
    counts.add_column("count", justify="right")
    counts.add_row("rows committed", str(found.counts["rows committed"]))
    counts.add_row("lost", str(found.counts["lost"]))
    counts.add_row("stuck", str(found.counts["stuck"]))
    for status, number in sorted(found.statuses.items()):
        counts.add_row(f"  {status}", str(number))
    for code, number in sorted(found.given_up.items()):
        counts.add_row(f"  dead: {code}", str(number))
    for what, number in found.counts.items():
        if what not in ("rows committed", "lost", "stuck"):
            counts.add_row(what, str(number))
    counts.add_row("attempts that did not reach FCM", str(sum(found.unsent.values())))
    for code, number in found.unsent.most_common():
        counts.add_row(f"  {code}", str(number))
    counts.add_row(
        "cancelled in time / put back / receipts",
        f"{len(result.ledger.cancelled)} / {len(result.ledger.requeued)} / {result.ledger.receipts}",
    )
    counts.add_row("writers refused by the database", str(result.ledger.refused))
    counts.add_row("doubles", str(sum(found.doubles.values())))
    for why, number in found.doubles.most_common():
        counts.add_row(f"  {why}", str(number))
    counts.add_row(
        "requests unlogged because of a kill / rows held at the kills",
        f"{sum(found.unlogged.values())} / {sum(found.held_at_kill.values())}",
    )
    counts.add_row("log lines of all listeners", str(result.log_lines))
    counts.add_row("promises broken", str(len(found.violations)))
    console.print(counts)
    for violation in found.violations[:30]:
        console.print(f"BROKEN: {violation}", markup=False)
