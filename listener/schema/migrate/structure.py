"""Whether the objects that the migrations created still exist: somebody may have dropped, disabled or replaced them.

The files of the applied migrations say which objects should exist. ``apply`` repairs functions, triggers, indexes and
views. A table that the application has dropped and created again must be adopted again, which an operator starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from hashlib import md5
from typing import LiteralString

from listener.schema.migrate.disk import Function, Migration, functions_of, statements

_MADE = re.compile(
    r"^create (?:or replace )?(?:unique )?(?P<kind>table|view|index|trigger) (?:if not exists )?(?P<name>[\w.]+)"
    r"(?P<rest>.*)",
    re.DOTALL,
)
_IN_A_BLOCK = re.compile(r"create (view|function) (public\.\w+)[ (]")
_DROPPED = re.compile(r"^drop (?:table|view) (?:if exists )?(?P<names>[\w., \n]+)")
_COLUMNS = re.compile(r"^alter table public\.(\w+)\s(.*)", re.DOTALL)
_COLUMN = re.compile(r'add column if not exists "?(\w+)"?')
_ON = re.compile(r"\bon (?:only )?([\w.]+)")
_BODY = re.compile(r"\bas \$\$(.*)\$\$;", re.DOTALL)
_INCLUDED = re.compile(r"^\\ir .*\n", re.MULTILINE)
_COMMENTS = re.compile(r"^\s*--.*\n", re.MULTILINE)

FACTS: LiteralString = """
select 'relation' as kind, n.nspname::text || '.' || c.relname::text as name,
       case when i.indexrelid is not null and not (i.indisvalid and i.indisready) then 'invalid' else '' end as state
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  left join pg_catalog.pg_index i on i.indexrelid = c.oid
  where n.nspname in ('public', 'push_listener') and c.relkind in ('r', 'v', 'm', 'i', 'f', 'p')
union all
select 'column', 'public.' || c.relname::text || '.' || a.attname::text, ''
  from pg_catalog.pg_class c
  join pg_catalog.pg_attribute a on a.attrelid = c.oid
  where c.relnamespace = pg_catalog.to_regnamespace('public')::oid and a.attnum > 0 and not a.attisdropped
    and c.relname in ('push_notifications', 'push_delivery_logs', 'push_devices', 'telemetry_logs')
union all
select 'trigger', 'public.' || c.relname::text || '.' || g.tgname::text,
       case when g.tgenabled in ('D', 'R') then 'disabled' else '' end
  from pg_catalog.pg_trigger g
  join pg_catalog.pg_class c on c.oid = g.tgrelid
  where c.relnamespace = pg_catalog.to_regnamespace('public')::oid and not g.tgisinternal
    and g.tgname like 'push\\_listener\\_%'
union all
select 'function', n.nspname::text || '.' || p.proname::text, pg_catalog.md5(p.prosrc)
  from pg_catalog.pg_proc p
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  where n.nspname in ('public', 'push_listener')
union all
select 'ledger', f.name, f.checksum from push_listener.functions f
"""
"""Reads which objects exist. Any role that may read the ledger may execute it."""


class Kind(StrEnum):
    """The kind of an object that may be missing."""

    TABLE = "table"
    COLUMN = "column"
    FUNCTION = "function"
    VIEW = "view"
    INDEX = "index"
    TRIGGER = "trigger"


NEEDED = frozenset({Kind.TABLE, Kind.COLUMN})
"""Nothing works without these, and ``apply`` does not create them again."""


@dataclass(frozen=True, slots=True)
class Damage:
    """An object that is not as the migrations created it."""

    kind: Kind
    name: str
    state: str
    """``missing``, ``disabled``, ``invalid`` or ``replaced``."""
    function: Function | None = None
    statement: str | None = None
    """The statement that creates it again."""

    def __str__(self) -> str:
        return f"the {self.kind} {self.name} is {self.state}"


def find(facts: Iterable[Sequence[str]], applied: Sequence[Migration]) -> list[Damage]:
    """The damaged objects, in the order in which they are repaired. Pure.

    Args:
        facts: the rows of FACTS.
        applied: the migrations that were applied to the database.
    """
    there: dict[tuple[str, str], set[str]] = {}
    for kind, name, state in facts:
        there.setdefault((kind, name), set()).add(state)
    tables: list[Damage] = []
    rest: list[Damage] = []
    for migration in applied:
        for damage in _of(migration, there):
            (tables if damage.kind in NEEDED else rest).append(damage)
    # The columns of a missing table are not reported too.
    gone = {damage.name for damage in tables if damage.kind is Kind.TABLE}
    tables = [each for each in tables if each.kind is Kind.TABLE or each.name.rpartition(".")[0] not in gone]
    return [*tables, *_functions(applied, there), *rest]


def lines(found: Iterable[Damage]) -> list[str]:
    """The damage in words. The missing columns of a table share one line."""
    said: list[str] = []
    columns: dict[str, list[str]] = {}
    for damage in found:
        table, _, column = damage.name.rpartition(".")
        if damage.kind is Kind.COLUMN:
            columns.setdefault(table, []).append(column)
        else:
            said.append(str(damage))
    return [f"the table {table} has no column {', '.join(names)}" for table, names in columns.items()] + said


def kinds(found: Iterable[Damage]) -> list[str]:
    """The kinds of the damaged objects, in the plural, without duplicates."""
    plural = {Kind.INDEX: "indexes"}
    return list(dict.fromkeys(plural.get(damage.kind, f"{damage.kind}s") for damage in found))


def remedy(found: Sequence[Damage]) -> str:
    """What to do about the damage."""
    if any(damage.kind in NEEDED for damage in found):
        return (
            "if the application has recreated its tables, or has dropped columns: stop every listener, run "
            "push-listener migrate --down 0 --keep-tables, which takes away what is left and keeps every table with "
            "its rows, and then push-listener migrate, which adopts the tables as they are now"
        )
    return "run push-listener migrate: it makes them again"


@dataclass(frozen=True, slots=True)
class _Made:
    """An object that a migration creates."""

    key: tuple[str, str]
    """Its kind and name in the rows of FACTS."""
    missing: Damage
    has_state: bool = False


def _of(migration: Migration, there: dict[tuple[str, str], set[str]]) -> list[Damage]:
    found = []
    for made in _made(migration.source):
        state = "missing" if made.key not in there else max(there[made.key]) if made.has_state else ""
        if state:
            found.append(replace(made.missing, state=state))
    return found


@cache
def _made(source: str) -> tuple[_Made, ...]:
    """The objects that a migration creates and does not drop again. Cached: reading all sources takes 30 ms."""
    found: list[_Made] = []
    dropped: set[str] = set()
    parts = statements(_INCLUDED.sub("", source))
    for statement in parts:
        if match := _DROPPED.match(statement):
            dropped |= {name.strip() for name in match["names"].split(",")}
        if match := _COLUMNS.match(statement):
            for column in _COLUMN.findall(_COMMENTS.sub("", match[2])):
                name = f"public.{match[1]}.{column}"
                found.append(_Made(("column", name), Damage(Kind.COLUMN, name, "missing")))
        for word, name in _IN_A_BLOCK.findall(statement) if statement.startswith("do ") else ():
            key = ("function" if word == "function" else "relation", name)
            found.append(_Made(key, Damage(Kind(word), name, "missing", statement=statement)))
        if match := _MADE.match(statement):
            kind, name = Kind(match["kind"]), match["name"]
            table = _ON.search(match["rest"])
            if kind is Kind.TRIGGER and table:
                key, name = ("trigger", f"{table[1]}.{name}"), f"{name} on {table[1]}"
            else:
                if kind is Kind.INDEX and table and "." not in name:
                    name = f"{table[1].partition('.')[0]}.{name}"
                key = ("relation", name)
            comments = [each for each in parts if each.startswith(f"comment on view {name} ")]
            damage = Damage(kind, name, "missing", statement=";\n".join([statement, *comments]))
            found.append(_Made(key, damage, has_state=True))
    return tuple(made for made in found if made.missing.name not in dropped)


def _functions(applied: Sequence[Migration], there: dict[tuple[str, str], set[str]]) -> list[Damage]:
    found = []
    for function in functions_of(applied):
        bodies = there.get(("function", function.name))
        if bodies is None:
            found.append(Damage(Kind.FUNCTION, function.name, "missing", function))
            continue
        body = _body(function.text)
        is_current = function.checksum in there.get(("ledger", function.name), set())
        if is_current and body and body not in bodies:
            found.append(Damage(Kind.FUNCTION, function.name, "replaced", function))
    return found


@cache
def _body(text: str) -> str | None:
    """The MD5 of the body of a function, as in the rows of FACTS."""
    body = _BODY.search(text)
    return md5(body[1].encode(), usedforsecurity=False).hexdigest() if body else None
