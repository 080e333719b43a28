"""Emits the migrations and pgTAP tests as files of a Supabase project, for people who deploy with the Supabase CLI.

An emitted migration does nothing if `push-listener migrate` has already applied the same migration, and the other way
round: both use the same ledger.

An emitted file never changes. It contains the functions as they were then. When a function has changed since, another
file, named after its content, replaces the function.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from listener.schema.migrate import (
    LEDGER,
    Function,
    Migration,
    MigrationError,
    functions_of,
    load,
    sql_directory,
)

_STAMP = "%Y%m%d%H%M%S"
_EARLIEST = datetime(2026, 1, 1)  # only orders the file names; nothing happened then
_STAMPED = re.compile(r"(\d{14})_.*\.sql")

# The functions in an emitted file, and the values that it writes about them into the ledger.
_REGION = re.compile(r"^-- function (\w+)\.(\w+)\n.*?^-- end of function \1\.\2$", re.MULTILINE | re.DOTALL)
_RECORDED = re.compile(r"\('(\w+\.\w+)', (\d+), '([0-9a-f]{64})'\)")

# The file is one statement, so that Postgres applies all of it or nothing, however the file is run.
_FRAME = """\
-- push-listener, {title}. Written by `push-listener migrate --emit`, not to be edited.
{remark}\
do $push_listener$
declare
  path constant text := pg_catalog.current_setting('search_path');
begin
  -- As in `push-listener migrate`: names without a schema mean those of Postgres, and none that others have created.
  set local search_path = pg_catalog, pg_temp;
{body}\
  perform pg_catalog.set_config('search_path', path, true);
end
$push_listener$;

notify pgrst, 'reload schema';
"""
_MIGRATION_REMARK = """\
-- It does nothing where `push-listener migrate` has been at work. That is the better way for large tables: here,
-- writers wait while an index is built.
"""
_MIGRATION = """\
{ledger}\
  if not exists (select from push_listener.migrations where version = {version}) then
    perform set_config('lock_timeout', '2s', true), set_config('client_min_messages', 'warning', true);
    execute $push_listener_{version:04d}$
{up}$push_listener_{version:04d}$;
    insert into push_listener.migrations (version, name, checksum)
      values ({version}, '{name}', '{checksum}');
{functions}\
  end if;
"""
_RECORD_FUNCTIONS = """\
    insert into push_listener.functions (name, revision, checksum) values
      {rows}
      on conflict (name) do update
        set revision = excluded.revision, checksum = excluded.checksum, applied_at = now();
"""
_FUNCTIONS_REMARK = """\
-- It replaces functions that have changed, but none that a newer push-listener has replaced already.
"""
_REPLACE = """\
  if exists (
    select from push_listener.functions
      where name = '{name}' and revision <= {revision} and checksum <> '{checksum}'
  ) then
    execute $push_listener_function$
{region}
$push_listener_function$;
    insert into push_listener.functions (name, revision, checksum) values
      {row}
      on conflict (name) do update
        set revision = excluded.revision, checksum = excluded.checksum, applied_at = now();
  end if;
"""


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    text: str
    source: str
    """What a file of that name must contain after its functions are replaced by the lines that include them."""


def emit(project: Path, migrations: list[Migration] | None = None) -> list[Path]:
    """Writes the missing files into ``project``, the folder `supabase` of an application; returns the new files.

    The names of migrations sort after the existing files, because they may adopt the tables of these. A later call
    keeps the names. Functions that have changed since they were emitted come last, in one file. A function is left out
    if a newer push-listener has emitted it in a higher revision.

    Raises MigrationError, having written nothing, if an existing file has other content, or if the folder belongs
    to something else. Raises OSError.
    """
    known = load() if migrations is None else migrations
    if not _is_supabase_folder(project):
        raise MigrationError(_otherwise(project))
    folder = project / "migrations"
    names = _Names(folder)
    files = [
        *(_migration(migration, names) for migration in known),
        *_tests(project / "tests" / "database"),
    ]
    missing = [file for file in files if not file.path.exists()]
    others = [
        file.path for file in files if file.path.exists() and not _holds(file.path.read_text(), file.source)
    ]
    others += [path for path in names.of_functions() if not _is_intact(path.read_text())]
    if others:
        raise MigrationError(
            "nothing has been written: these files are there, with other content than push-listener's; move them away"
            + "".join(f"\n  {path}" for path in others)
        )
    emitted = _emitted(path.read_text() for path in names.of_push_listener())
    emitted |= _emitted(file.text for file in missing)
    changed = [
        function
        for function in functions_of(known)
        if emitted[function.name][1] != function.checksum and emitted[function.name][0] <= function.revision
    ]
    if changed:
        missing.append(_functions(changed, names))
    for file in missing:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.path.write_text(file.text)
    return [file.path for file in missing]


def _is_supabase_folder(folder: Path) -> bool:
    """Whether the folder is for the Supabase CLI: it is new, empty, or holds files that only such a folder holds."""
    return (
        not folder.exists()
        or not any(folder.iterdir())
        or (folder / "config.toml").is_file()
        or any(_STAMPED.fullmatch(path.name) for path in (folder / "migrations").glob("*.sql"))
    )


def _otherwise(folder: Path) -> str:
    """Why nothing is written into this folder, and which folder is probably meant instead."""
    text = (
        f"nothing has been written: {folder} is not the folder supabase of a project (it has neither config.toml "
        "nor migrations/<timestamp>_<name>.sql, and is not empty)"
    )
    for meant in (folder / "supabase", folder.resolve().parent):
        if meant.is_dir() and any(meant.iterdir()) and _is_supabase_folder(meant):
            return f"{text}. Did you mean {meant}?"
    return f"{text}. Name that folder, or an empty one"


class _Names:
    """The file names in a folder of migrations, and the names for new files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._there = sorted(path.name for path in folder.glob("*.sql"))
        stamps = [datetime.strptime(m[1], _STAMP) for name in self._there if (m := _STAMPED.fullmatch(name))]
        self._last = max([_EARLIEST, *stamps])

    def path(self, name: str) -> Path:
        """The path of the existing file with this name, or a new path that sorts after every other."""
        ending = f"_push_listener_{name}.sql"
        found = next((each for each in self._there if each.endswith(ending)), None)
        if found is None:
            self._last += timedelta(seconds=1)
            found = self._last.strftime(_STAMP) + ending
        return self._folder / found

    def of_push_listener(self) -> list[Path]:
        """The emitted files, in the order in which they are applied."""
        return [self._folder / name for name in self._there if "_push_listener_" in name]

    def of_functions(self) -> list[Path]:
        """The emitted files that replace functions."""
        return [path for path in self.of_push_listener() if "_push_listener_functions_" in path.name]


def _migration(migration: Migration, names: _Names) -> _File:
    ledger = LEDGER.strip().splitlines() if migration.version == 1 else ()
    rows = ",\n      ".join(map(_row, migration.functions))
    body = _MIGRATION.format(
        version=migration.version,
        name=migration.name,
        checksum=migration.checksum,
        ledger="".join(f"  {line}\n" for line in ledger),
        up=migration.up,
        functions=_RECORD_FUNCTIONS.format(rows=rows) if rows else "",
    )
    text = _FRAME.format(title=migration, remark=_MIGRATION_REMARK, body=body)
    return _File(names.path(migration.name), text, migration.source)


def _functions(changed: list[Function], names: _Names) -> _File:
    body = "".join(
        _REPLACE.format(
            name=function.name,
            revision=function.revision,
            checksum=function.checksum,
            region=function.region(),
            row=_row(function),
        )
        for function in changed
    )
    content = hashlib.sha256(body.encode()).hexdigest()[:8]
    text = _FRAME.format(title=", ".join(f.name for f in changed), remark=_FUNCTIONS_REMARK, body=body)
    return _File(names.path(f"functions_{content}"), text, text)


def _row(function: Function) -> str:
    return f"('{function.name}', {function.revision}, '{function.checksum}')"


def _tests(folder: Path) -> Iterator[_File]:
    for path in sorted(sql_directory("tests").glob("*.test.sql")):
        text = path.read_text()
        yield _File(folder / f"push_listener_{path.name}", text, text)


def _holds(text: str, source: str) -> bool:
    """Whether an emitted file contains this migration, with any revision of its functions, and is unedited."""
    return source in text or (
        source in _REGION.sub(r"\\ir ../functions/\1/\2.sql", text) and _is_intact(text)
    )


def _is_intact(text: str) -> bool:
    """Whether the functions in an emitted file have the checksums that the file records."""
    recorded = {name: checksum for name, _, checksum in _RECORDED.findall(text)}
    for region in _REGION.finditer(text):
        lines = region[0].split("\n")[1:-1]
        source = "\n".join(lines) + "\n"
        as_file = source.replace("create function ", "create or replace function ", 1)
        checksums = {hashlib.sha256(each.encode()).hexdigest() for each in (source, as_file)}
        if recorded.get(f"{region[1]}.{region[2]}") not in checksums:
            return False
    return True


def _emitted(texts: Iterable[str]) -> dict[str, tuple[int, str]]:
    """The revision and the checksum of each function in the last of these files that has it."""
    return {
        name: (int(revision), checksum)
        for text in texts
        for name, revision, checksum in _RECORDED.findall(text)
    }
