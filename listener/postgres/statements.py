"""Reads the long SQL statements, each from a file of its own in the folder sql beside the module that executes it.

These rules hold for all statements of the listener, long and short, in this package and in others:

**Names.** The statements run in sessions whose search_path the application decides: its triggers on the queue fire in
these sessions and may need the path, and behind a transaction pooler the session is shared. A role that may create
functions, operators or types in a schema of that path, such as public, would run its own code with the rights of the
listener if a statement looked up a name there. Postgres prefers a function or operator that fits the argument types
exactly, in any schema of the path, to one that needs a cast. Therefore:

- Functions and relations are named with their schema. coalesce, extract and an unnest of several arrays are syntax.
- Each operator has operands for which pg_catalog has exactly that operator; pg_catalog wins where several fit equally.
  A column that may be varchar in an adopted table is cast to text, and so is the key of ->>, because Postgres first
  gives an untyped literal the type of the other operand. pg_catalog has operators between the integer types and between
  a timestamp and an interval, but none between a date and a smallint, or an oid and an integer.
- Types need no schema: pg_catalog comes before every schema but pg_temp, and only the session's own role can create
  anything in its pg_temp.

tests/integration/postgres/test_attacks.py makes Postgres resolve every statement among such names.

**The index.** Two expressions must be written exactly as in the index push_notifications_due, or Postgres cannot use
it: the lane, ``(case priority::text when 'high' then 0 else 1 end)``, and the condition that a row waits,
``next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')``.

**Times.** Postgres returns seconds, subtracted as numbers: before version 17 it cannot subtract 'infinity'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import LiteralString

_NAME = re.compile(r"%\((\w+)\)s")


def load(module: str, name: str, **parts: str) -> LiteralString:
    """The statement in ``sql/<name>.sql`` beside a module, with other statements in place of ``{part}``.

    Lines that are comments are left out: psycopg converts the placeholders of a statement at every execution unless the
    text is shorter than 4 KiB. ``numbered`` is for those that are longer all the same, and executed often.

    Args:
        module: the ``__file__`` of the module.
        name: the file's, without the suffix.
        parts: the statements to insert, by their names in the file.
    """
    text = (Path(module).parent / "sql" / f"{name}.sql").read_text(encoding="utf-8")
    statement = "".join(
        line for line in text.splitlines(keepends=True) if not line.lstrip().startswith("--")
    ).strip()
    return statement.format(**parts) if parts else statement


@dataclass(frozen=True, slots=True)
class Numbered:
    """A statement for psycopg's raw cursors, which convert nothing."""

    text: bytes
    """With ``$1``, ``$2``, ... in place of names."""
    names: tuple[str, ...]
    """Of the values, in the order of the numbers."""

    def values(self, by_name: Mapping[str, object]) -> list[object]:
        """The values in their order. Raises KeyError if one is missing."""
        return [by_name[name] for name in self.names]


@lru_cache
def numbered(statement: LiteralString) -> Numbered:
    """The statement with numbers in place of ``%(name)s``.

    psycopg takes 0.2 ms of CPU time to convert the placeholders of a claim, and 0.5 ms after a pause.
    """
    numbers = {name: f"${number}" for number, name in enumerate(dict.fromkeys(_NAME.findall(statement)), 1)}
    text = _NAME.sub(lambda match: numbers[match[1]], statement).replace("%%", "%")
    return Numbered(text.encode(), tuple(numbers))
