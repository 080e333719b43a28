"""Whether everything that the migrations create exists, and the triggers are enabled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import LiteralString

from listener.doctor.findings import Finding, Group
from listener.doctor.looking import Connection, records, value
from listener.postgres.statements import load
from listener.postgres.workers import STRANGERS_SCHEMA, StrangersSchema
from listener.schema.migrate import FunctionState, MigrationError, Standing, State, ledger, structure
from listener.schema.migrate import load as known_migrations
from listener.schema.migrate.structure import Damage, Kind

_GROUP = Group("migrations")
_TRIGGERS_GROUP = Group("triggers")
_TRIGGERS = load(__file__, "triggers")

MIGRATED: LiteralString = """
select exists (
  select from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'push_listener' and c.relname = 'workers')
"""
"""Whether the tables exist that the other checks look at."""

_FUNCTIONS = {
    Standing.CHANGED: "run push-listener migrate: it replaces them",
    Standing.NEWER: "a newer push-listener has replaced them: use that version here too",
}
"""What to do about functions in the database that differ from those of this version."""

_RING = ("push_listener_ring_insert", "push_listener_ring_update")


@dataclass(frozen=True, slots=True)
class Trigger:
    """One trigger of push-listener on a table that the application uses too."""

    relation: str
    """The table with its schema, quoted where necessary."""
    name: str
    enabled: str
    """``tgenabled``: O origin, D disabled, R replica, A always."""


def examine(conn: Connection) -> Iterator[Finding]:
    """Raises psycopg.Error."""
    stranger = value(conn, STRANGERS_SCHEMA)
    if stranger is not None:
        yield _GROUP.wrong_setting(str(StrangersSchema(str(stranger))))
        return
    known = known_migrations()
    try:
        states = ledger.migration_states(conn, known)
    except MigrationError as error:
        yield _GROUP.fault(str(error))
        return
    applied = [state.migration for state in states if state.applied_at is not None]
    damaged = structure.find(_facts(conn), applied) if applied else []
    yield from judge(states, ledger.function_states(conn, known), damaged)


def _facts(conn: Connection) -> list[tuple[str, ...]]:
    return [tuple(map(str, row)) for row in conn.execute(structure.FACTS).fetchall()]


def judge(states: list[State], functions: list[FunctionState], damaged: list[Damage]) -> Iterator[Finding]:
    """Pure. Disabled triggers are left out: ``judge_triggers`` reports them in another group."""
    damaged = [damage for damage in damaged if (damage.kind, damage.state) != (Kind.TRIGGER, "disabled")]
    missing = sum(state.applied_at is None for state in states)
    changed = [state.migration.name for state in states if state.changed]
    if missing:
        yield _GROUP.fault(f"{missing} of {len(states)} are not applied", "run push-listener migrate")
    if changed:
        yield _GROUP.fault(f"applied from other files: {', '.join(changed)}")
    if missing < len(states):
        for standing, remedy in _FUNCTIONS.items():
            if names := [each.function.name for each in functions if each.standing is standing]:
                yield _GROUP.warning(f"functions that are {standing}: {', '.join(names)}", remedy)
    for line in structure.lines(damaged):
        yield _GROUP.fault(line, structure.remedy(damaged))
    if not missing and not changed and not damaged:
        yield _GROUP.ok(f"all {len(states)} are applied, and what they made is there")


def examine_triggers(conn: Connection, *, sweeps: bool) -> Iterator[Finding]:
    """Raises psycopg.Error."""
    return judge_triggers(records(conn, Trigger, _TRIGGERS), sweeps=sweeps)


def judge_triggers(found: list[Trigger], *, sweeps: bool) -> Iterator[Finding]:
    """Pure. ``sweeps``: whether WAKEUP is sweep, which does not need the triggers that notify."""
    idle = [trigger for trigger in found if trigger.enabled in ("D", "R")]
    for trigger in idle:
        state = "is disabled" if trigger.enabled == "D" else "fires on replicas only"
        if sweeps and trigger.name in _RING:
            yield _TRIGGERS_GROUP.ok(
                f"the trigger {trigger.name} on {trigger.relation} {state}, as WAKEUP=sweep allows"
            )
            continue
        effect = ": inserts wait for the next sweep" if trigger.name in _RING else ""
        # Postgres has quoted the names, so they can stand in the statement as they are.
        yield _TRIGGERS_GROUP.fault(
            f"the trigger {trigger.name} on {trigger.relation} {state}{effect}",
            f"alter table {trigger.relation} enable trigger {trigger.name}",
        )
    if found and not idle:
        yield _TRIGGERS_GROUP.ok(f"all {len(found)} are enabled")
