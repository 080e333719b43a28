r"""The SQL files in db/migrations and db/functions.

A migration includes the functions that it creates, as in psql, with a line ``\ir ../functions/SCHEMA/NAME.sql``. The
first migration that includes a function creates it; the rollback of that migration drops it. On a new database, that
migration already creates the function with its present text. So the text must work with the tables as the newest
migration leaves them.

How to change a function: edit its file and raise the number in its first line, ``-- revision N``. ``push-listener
migrate`` replaces the function in every database where it differs. An older push-listener leaves a higher revision as
it is, and says so. It replaces a lower or equal revision.

How to change the arguments or the result of a function: ``create or replace`` cannot change the result, and with other
argument types it would create a second function. Edit the file, and write a migration that does the following. It drops
the function with its old arguments (``drop function if exists``), together with the triggers, policies and views that
use it. Then it includes the file, and creates the triggers, policies and views again. It ends with ``select
push_listener.apply_privileges()``, because a new function has the default privileges. If applications call the
function, keep the old function beside it, under its name and in its own file, until they use the new one.

How to remove a function: a migration drops it and deletes its row from ``push_listener.functions``. Its file stays as
long as an earlier migration includes it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_INCLUDE = re.compile(r"^\\ir \.\./functions/(\w+)/(\w+)\.sql$", re.MULTILINE)
_REVISION = re.compile(r"-- revision ([1-9]\d*)\n")
_REPLACE = "create or replace function "

# A statement ends with a semicolon that is not in a comment, a string or a dollar-quoted body.
_STATEMENT = re.compile(r"(?:--[^\n]*|'[^']*'|\$(\w*)\$.*?\$\1\$|[^;])+", re.DOTALL)
_COMMENTS = re.compile(r"(?:\s*--[^\n]*(?:\n|$))*")


class MigrationError(Exception):
    """A migration cannot be applied or rolled back; the message says which, why and what to do."""


class WrongDatabase(MigrationError):
    """The address leads through a pooler in transaction mode, or to a stranger's schema push_listener.

    ``run`` treats both as a wrong configuration, and ends with the same exit code.
    """


@dataclass(frozen=True, slots=True)
class Function:
    """One SQL function in ``db/functions``."""

    name: str
    """The name with its schema. It is unique, because push-listener does not overload functions."""
    revision: int
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file (hex)."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def region(self, *, creates: bool = False) -> str:
        """The text of the function, between two lines that name it.

        ``creates``: the function must not exist yet. If a stranger has created a function with this name, replacing it
        would leave the stranger as its owner.
        """
        text = self.text.replace(_REPLACE, "create function ", 1) if creates else self.text
        return f"-- function {self.name}\n{text}-- end of function {self.name}"


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration in ``db/migrations``."""

    version: int
    name: str
    source: str
    """The text of the file, with one line for each function that it includes."""
    down: str
    functions: tuple[Function, ...] = ()
    """The functions that it includes, in order."""
    creates: frozenset[str] = frozenset()
    """The names of the functions that no earlier migration includes."""

    @property
    def up(self) -> str:
        """The SQL that is run: the file with the text of its functions."""
        found = {function.name: function for function in self.functions}

        def text(line: re.Match[str]) -> str:
            name = f"{line[1]}.{line[2]}"
            return found[name].region(creates=name in self.creates)

        return _INCLUDE.sub(text, self.source)

    @property
    def checksum(self) -> str:
        """SHA-256 of the file (hex). The functions that it includes have their own checksums."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.version:04d}_{self.name}"


def sql_directory(name: str) -> Path:
    """The directory ``db/<name>``: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[2]
    installed = package / "db" / name
    return installed if installed.is_dir() else package.parent / "db" / name


def load(directory: Path | None = None) -> list[Migration]:
    """Every migration, in order, with its functions.

    Raises MigrationError if a number is missing or occurs twice, if a rollback file is missing, if a function is
    missing or not in the form that this module describes, or if no migration includes a function.
    """
    return list(_own() if directory is None else _read(directory))


@cache
def _own() -> tuple[Migration, ...]:
    """The migrations of this version. Cached: reading 120 files takes 17 ms, and most commands do it several times."""
    return _read(sql_directory("migrations"))


def _read(folder: Path) -> tuple[Migration, ...]:
    functions: dict[str, Function] = {}
    found = []
    for path in sorted(folder.glob("*.sql")):
        if path.name.endswith(".down.sql"):
            continue
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise MigrationError(f"{path.name} is not named like 0001_what_it_does.sql")
        down = path.with_suffix(".down.sql")
        if not down.is_file():
            raise MigrationError(f"{path.name} has no way back: {down.name} is missing")
        source = path.read_text()
        included = [_function(folder, schema, name) for schema, name in _INCLUDE.findall(source)]
        creates = frozenset(function.name for function in included) - functions.keys()
        functions |= {function.name: function for function in included}
        found.append(Migration(int(match[1]), match[2], source, down.read_text(), tuple(included), creates))
    numbers = [m.version for m in found]
    if numbers != list(range(1, len(found) + 1)):
        raise MigrationError(f"migrations must be numbered 1, 2, 3 ... without gaps; found {numbers}")
    for path in sorted((folder.parent / "functions").glob("*/*.sql")):
        if f"{path.parent.name}.{path.stem}" not in functions:
            raise MigrationError(f"no migration includes functions/{path.parent.name}/{path.name}")
    return tuple(found)


def _function(folder: Path, schema: str, name: str) -> Function:
    path = folder.parent / "functions" / schema / f"{name}.sql"
    if not path.is_file():
        raise MigrationError(f"functions/{schema}/{name}.sql is missing, which a migration includes")
    text = path.read_text()
    revision = _REVISION.match(text)
    if revision is None or text.count(f"{_REPLACE}{schema}.{name}(") != 1 or not text.endswith("\n"):
        raise MigrationError(
            f"functions/{schema}/{name}.sql must begin with a line like -- revision 1, and {_REPLACE}{schema}.{name}"
        )
    return Function(f"{schema}.{name}", int(revision[1]), text)


def functions_of(migrations: Iterable[Migration]) -> list[Function]:
    """The functions that these migrations include, each once, in the order of their creation."""
    return list({function.name: function for m in migrations for function in m.functions}.values())


def statements(script: str) -> list[str]:
    """The statements of a script, each without the comments before it. For scripts as in db/migrations only."""
    parts = [_COMMENTS.sub("", match[0], count=1).strip() for match in _STATEMENT.finditer(script)]
    return [part for part in parts if part]
