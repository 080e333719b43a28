"""The migrations and pgTAP tests as files of a Supabase project, for those who deploy with its CLI.

An emitted migration does nothing where `push-listener migrate` has been at work already, and the other way
round: both keep the same ledger.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from listener.schema.migrate import LEDGER, Migration, MigrationError, load, sql_directory

_STAMP = "%Y%m%d%H%M%S"
_EARLIEST = datetime(2026, 1, 1)  # a name, not a time
_STAMPED = re.compile(r"(\d{14})_.*\.sql")

# One statement, so that it is all or nothing, whoever runs it and however.
_FILE = """\
-- push-listener, {version:04d}_{name}. Written by `push-listener migrate --emit`, not to be edited.
-- It does nothing where `push-listener migrate` has been at work. That is the better way for large tables: here,
-- writers wait while an index is built.
do $push_listener$
declare
  path constant text := pg_catalog.current_setting('search_path');
begin
  -- As `push-listener migrate` has it: nothing that somebody has created in another schema is taken for Postgres' own.
  set local search_path = pg_catalog, pg_temp;
{ledger}\
  if not exists (select from push_listener.migrations where version = {version}) then
    perform set_config('lock_timeout', '2s', true), set_config('client_min_messages', 'warning', true);
    execute $push_listener_{version:04d}$
{up}$push_listener_{version:04d}$;
    insert into push_listener.migrations (version, name, checksum)
      values ({version}, '{name}', '{checksum}');
  end if;
  perform pg_catalog.set_config('search_path', path, true);
end
$push_listener$;

notify pgrst, 'reload schema';
"""


def emit(project: Path) -> list[Path]:
    """Writes what is missing into ``project``, the folder `supabase` of an application; returns the new files.

    Migrations are named so that they come after those that are there, whose tables they may adopt, and keep
    their names when this is repeated. Raises MigrationError, having written nothing, when a file that is
    there has other content, and OSError.
    """
    missing: dict[Path, str] = {}
    others: list[Path] = []
    for path, text, essence in [
        *_migrations(project / "migrations"),
        *_tests(project / "tests" / "database"),
    ]:
        if not path.exists():
            missing[path] = text
        elif essence not in path.read_text():
            others.append(path)
    if others:
        raise MigrationError(
            "nothing has been written: these files are there, with other content than push-listener's; move them away"
            + "".join(f"\n  {path}" for path in others)
        )
    for path, text in missing.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(missing)


def _migrations(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Path, text, and what of the text must stand in a file of that name."""
    there = sorted(path.name for path in folder.glob("*.sql"))
    stamps = [datetime.strptime(m[1], _STAMP) for name in there if (m := _STAMPED.fullmatch(name))]
    last = max([_EARLIEST, *stamps])
    for migration in load():
        ending = f"_push_listener_{migration.name}.sql"
        name = next((name for name in there if name.endswith(ending)), None)
        if name is None:
            last += timedelta(seconds=1)
            name = last.strftime(_STAMP) + ending
        yield folder / name, _file(migration), migration.up


def _file(migration: Migration) -> str:
    ledger = LEDGER.strip().splitlines() if migration.version == 1 else ()
    return _FILE.format(
        version=migration.version,
        name=migration.name,
        checksum=migration.checksum,
        ledger="".join(f"  {line}\n" for line in ledger),
        up=migration.up,
    )


def _tests(folder: Path) -> Iterator[tuple[Path, str, str]]:
    for path in sorted(sql_directory("tests").glob("*.test.sql")):
        text = path.read_text()
        yield folder / f"push_listener_{path.name}", text, text
