"""Code of an attacker's, put where another role's SQL might take it for Postgres' own."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg._queries import PostgresQuery
from psycopg.adapt import Transformer

from listener.schema import migrate
from tests.support.access import OWNER, PUSH
from tests.support.postgres import Database, Server

ATTACKER = "test_attacker"
"""Logs in, and may create things in ``public``."""

# --- pg_temp: what a session has for itself -------------------------------------------------------------------

# Every catalog, as a view that calls the attacker's function; views with the names of the transition tables of our
# triggers; and every name of a type of Postgres', as a domain whose check calls it.
FILL_PG_TEMP: LiteralString = """
set local search_path = pg_catalog, pg_temp;
create function pg_temp.evil() returns boolean language plpgsql as
  $$ begin raise warning 'evil ran as %', current_user; return true; end $$;
create view pg_temp.was as select * from public.push_notifications where pg_temp.evil();
create view pg_temp.became as select * from public.push_notifications where pg_temp.evil();
create view pg_temp.added as select * from public.push_delivery_logs where pg_temp.evil();
grant select on pg_temp.was, pg_temp.became, pg_temp.added to public;
do $$
declare
  one record;
begin
  for one in
    select c.relname, string_agg(quote_ident(a.attname), ', ' order by a.attnum) as columns
      from pg_class c
      join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      join pg_type t on t.oid = a.atttypid and t.typtype <> 'p'
      where c.relnamespace = 'pg_catalog'::regnamespace and c.relkind in ('r', 'v')
        and c.relname not like 'pg\\_statistic%' and c.relname not like 'pg\\_stats%'
      group by c.relname
  loop
    execute format('create view pg_temp.%I as select %s from pg_catalog.%1$I where pg_temp.evil()',
                   one.relname, one.columns);
    execute format('grant select on pg_temp.%I to public', one.relname);
  end loop;
  for one in
    select t.typname, case t.typtype when 'p' then 'text' else t.typname end as base
      from pg_type t
      where t.typnamespace = 'pg_catalog'::regnamespace and t.typtype in ('b', 'p', 'r', 'm')
        and t.typname not like '\\_%'
  loop
    execute format('create domain pg_temp.%I as pg_catalog.%I check (pg_temp.evil())', one.typname, one.base);
  end loop;
end
$$;
"""


INTERNAL_CALLS = {
    "push_listener.add_counts": "select push_listener.add_counts(c) from push_listener.daily_counts c limit 1",
    "push_listener.adopt": (
        "select push_listener.adopt('push_devices', p_nullable => '{platform}', "
        'p_defaults => \'{"updated_at": "now()"}\','
        ' p_words => \'{"platform": ["web", "watch"]}\', p_lengths => \'{"token": 9999}\')'
    ),
    "push_listener.adopted": "select push_listener.adopted('push_devices')",
    "push_listener.caller": "select push_listener.caller()",
    "push_listener.caller_id": "select push_listener.caller_id()",
    "push_listener.caller_is_service": "select push_listener.caller_is_service()",
    "push_listener.can_tell_users": "select push_listener.can_tell_users()",
    "push_listener.check_action": (
        "select push_listener.check_action('anna', 'why', '{\"code\": \"UNREGISTERED\"}', '{}')"
    ),
    "push_listener.columns": "select push_listener.columns('push_devices')",
    "push_listener.daily_totals": "select * from push_listener.daily_totals(31)",
    "push_listener.forget_telemetry_use": "select push_listener.forget_telemetry_use()",
    "push_listener.grant_kept": "select push_listener.grant_kept()",
    "push_listener.granted": "select * from push_listener.granted()",
    "push_listener.json_problem": 'select push_listener.json_problem(\'{"a": [1e3, "b"]}\', 100)',
    "push_listener.is_as_left": "select push_listener.is_as_left('push_devices')",
    "push_listener.keeps": "select push_listener.keeps('push_devices')",
    "push_listener.kept": "select * from push_listener.kept()",
    "push_listener.losses": "select push_listener.losses('push_devices')",
    "push_listener.lost_counts": "select push_listener.lost_counts()",
    "push_listener.mark_policies": "select push_listener.mark_policies()",
    "push_listener.meant": "select * from push_listener.meant()",
    "push_listener.policy_changes": "select * from push_listener.policy_changes()",
    "push_listener.privilege_changes": "select * from push_listener.privilege_changes()",
    "push_listener.privilege_warnings": "select * from push_listener.privilege_warnings()",
    "push_listener.drops_fid": "select push_listener.drops_fid()",
    "push_listener.lost_fids": "select push_listener.lost_fids()",
    "push_listener.record_receipt": (
        f"select push_listener.record_receipt('{PUSH}', 'token of {OWNER}', 'opened', null, pg_catalog.now())"
    ),
    "push_listener.receipt_fault": (
        """select push_listener.receipt_fault('{"push_id": "00000000-0000-4000-8000-00000000000a", "at": "x"}')"""
    ),
    "push_listener.telemetry_answer": (
        "select push_listener.telemetry_answer('00000000-0000-4000-8000-00000000000a', 1, '{0,1}', "
        """array['7'::pg_catalog.jsonb, '{"type": "a"}'::pg_catalog.jsonb], null)"""
    ),
    "push_listener.receipt_facts": (
        "select * from push_listener.receipt_facts('00000000-0000-4000-8000-00000000000a', 'token', 'opened')"
    ),
    "push_listener.receipt_problem": (
        """select push_listener.receipt_problem(null, 'token', 'opened', '{"a": 1}')"""
    ),
    "push_listener.restore_checks": "select push_listener.restore_checks('push_devices', false)",
    "push_listener.restore_not_null": "select push_listener.restore_not_null('push_devices', false)",
    "push_listener.policies": "select * from push_listener.policies()",
    "push_listener.policy_mark": (
        "select push_listener.policy_mark('public.push_devices', 'push_listener_own', 'using (true)')"
    ),
    "push_listener.refuse_users": "select push_listener.refuse_users()",
    "push_listener.share_new_columns": "select push_listener.share_new_columns()",
    "push_listener.reaches": "select push_listener.reaches(0::pg_catalog.oid, 10::pg_catalog.oid)",
    "push_listener.shows_own_rows": "select push_listener.shows_own_rows('push_devices')",
    "push_listener.telemetry_wait": (
        "select push_listener.telemetry_wait('00000000-0000-4000-8000-00000000000a', 10, 1000)"
    ),
    "push_listener.trusts": "select push_listener.trusts('auth.uid()')",
    "push_listener.user_inserts": "select push_listener.user_inserts()",
    "push_listener.restore_table": "select push_listener.restore_table('telemetry_logs')",
    "push_listener.guarded": "select * from push_listener.guarded()",
    "push_listener.apply_privileges": "select push_listener.apply_privileges()",
    "push_listener.store_telemetry": (
        """select push_listener.store_telemetry('{"{\\"type\\": \\"a\\", \\"message\\": \\"b\\"}"}', null, null)"""
    ),
    "push_listener.telemetry_problem": (
        """select push_listener.telemetry_problem('{"type": "a", "message": "b", "timestamp": "2026-01-01T00:00"}', """
        "'00000000-0000-4000-8000-00000000000a')"
    ),
    "push_listener.set_storage_defaults": (
        "select push_listener.set_storage_defaults('push_devices', '{\"fillfactor\": \"70\"}')"
    ),
    "push_listener.to_time": "select push_listener.to_time('2026-01-01T00:00:00Z')",
}
"""A call, with arguments that make it do its work, of each function that no role but the owner may call."""


class Session:
    """A session with a full pg_temp, and the roles that have run what is in it since it was last asked."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._ran: list[str] = []
        self.connection = connection
        connection.execute(FILL_PG_TEMP)
        connection.add_notice_handler(self._hear)

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        said = notice.message_primary or ""
        if said.startswith("evil ran as "):
            self._ran.append(said.removeprefix("evil ran as "))

    def ran_as(self) -> set[str]:
        """Who has run the attacker's code."""
        ran, self._ran = set(self._ran), []
        return ran


# --- public: what everybody's search_path names ------------------------------------------------------------------

# For each operator of Postgres', one for every two types for which pg_catalog has none: it fits better than one of
# pg_catalog's to which an operand has to be cast. The same for each function that our SQL calls. Only where pg_catalog
# has one that might be meant: where the type can be cast to its own, is of the same category, or of that of strings,
# which a literal is taken for first.
_TYPES = (
    "text, varchar, name, json, jsonb, int2, int4, int8, float8, numeric, oid, regclass, date, timestamptz, "
    "interval, uuid, uuid[], text[]"
)
_OPERATORS = "= <> < <= > >= + - * / || ~ ~* -> ->> #>> ? @> <@ &&"

_FILL_PUBLIC = """
create sequence public.evil_ran;
create sequence public.evil_last;
grant all on sequence public.evil_ran, public.evil_last to public;
-- A sequence keeps what a transaction that is rolled back has done to it.
create function public.evil_note(which integer) returns void language plpgsql set search_path = '' as
  $$ begin
    if current_user operator(pg_catalog.<>) '{attacker}'::pg_catalog.name then
      perform pg_catalog.nextval('public.evil_ran'), pg_catalog.setval('public.evil_last', which::pg_catalog.int8);
    end if;
  end $$;
create table public.evil_names (which integer generated always as identity, name text);
create table pg_temp.near as
  select g.oid::pg_catalog.regtype as given, w.oid as wanted
    from pg_catalog.unnest(pg_catalog.string_to_array('{types}', ', ')) t
    join pg_catalog.pg_type g on g.oid = t::pg_catalog.regtype
    cross join pg_catalog.pg_type w
    where w.typnamespace = 'pg_catalog'::pg_catalog.regnamespace
      and (g.typcategory in ('S', w.typcategory)
           or w.typname in ('any', 'anyelement', 'anynonarray', 'anycompatible', 'anycompatiblenonarray')
           or w.typname in ('anyarray', 'anycompatiblearray') and g.typcategory = 'A'
           or exists (select from pg_catalog.pg_cast c
                        where c.castsource = g.oid and c.casttarget = w.oid and c.castcontext = 'i'));
analyze pg_temp.near;
do $$
declare
  one record;
  result text;
  which integer;
begin
  for one in
    with meant as materialized (
      select * from pg_catalog.pg_operator where oprname = any (pg_catalog.string_to_array('{operators}', ' '))
    )
    select o.oprname as name, l.given as l, r.given as r
      from meant o
      join pg_temp.near l on l.wanted = o.oprleft
      join pg_temp.near r on r.wanted = o.oprright
    union
    -- Of a literal it is first assumed that it is of the type of the other operand.
    select o.oprname, n.given, n.given from meant o join pg_temp.near n on n.wanted in (o.oprleft, o.oprright)
    except
    select oprname, oprleft::pg_catalog.regtype, oprright::pg_catalog.regtype from meant
  loop
    insert into public.evil_names (name) values (pg_catalog.format('%s(%s, %s)', one.name, one.l, one.r))
      returning evil_names.which into which;
    result := case when one.name in ('+', '-', '*', '/') then one.l::text when one.name = '->' then 'jsonb'
                   when one.name in ('||', '->>', '#>>') then 'text' else 'boolean' end;
    execute pg_catalog.format(
      'create function public.evil_%s(%s, %s) returns %s language plpgsql as
         ''begin perform public.evil_note(%1$s); return null; end''', which, one.l, one.r, result);
    execute pg_catalog.format('create operator public.%s (leftarg = %s, rightarg = %s, function = public.evil_%s)',
                              one.name, one.l, one.r, which);
  end loop;
  for one in
    with called as materialized (
      select oid, proname as name, proargtypes as types, pronargs as most, pronargs - pronargdefaults as least,
             provariadic <> 0 as is_variadic
        from pg_catalog.pg_proc
        where pronamespace = 'pg_catalog'::pg_catalog.regnamespace and proname = any ('{functions}')
    ), taken as materialized (
      select f.*, place, n.given
        from called f, pg_catalog.generate_series(0, 1) place, pg_temp.near n
        where n.wanted = case when f.is_variadic then n.given else f.types[place] end
    ), made as (
      select name, pg_catalog.format('%s', given) as arguments
        from taken
        where place = 0 and (least <= 1 or is_variadic)
      union
      select l.name, pg_catalog.format('%s, %s', l.given, r.given)
        from taken l join taken r on r.oid = l.oid
        where l.place = 0 and r.place = 1 and (l.least <= 2 or l.is_variadic)
          and l.given in ('text', 'varchar', 'name', 'json') and r.given in ('text', 'varchar', 'name', 'json')
    )
    select * from made
    except
    select name, pg_catalog.oidvectortypes(types) from called
  loop
    insert into public.evil_names (name) values (pg_catalog.format('%s(%s)', one.name, one.arguments))
      returning evil_names.which into which;
    execute pg_catalog.format(
      'create function public.%I(%s) returns integer language plpgsql as
         ''begin perform public.evil_note(%s); return null; end''', one.name, one.arguments, which);
  end loop;
end
$$;
grant select on public.evil_names to public;
"""


def called_functions() -> list[str]:
    """Every name that our SQL might call as a function of Postgres'."""
    texts = [text for migration in migrate.load() for text in (migration.up, migration.down)]
    texts += statements().values()
    return sorted({name for text in texts for name in re.findall(r"\b([a-z_0-9]+)\(", text)})


@cache
def statements() -> Mapping[str, str]:
    """Every statement in the modules of the service, its commands and the client, by module and line."""
    found = {}
    for name in (
        "client.direct", "client.transaction", "doctor.neighbours", "operating.acting", "operating.reading",
        "postgres.claiming", "postgres.connect", "postgres.foreign_triggers", "postgres.locks", "postgres.overview",
        "postgres.put_back", "postgres.queue", "postgres.settlements", "postgres.stats", "postgres.unwritable",
        "postgres.workers", "schema.migrate.structure", "schema.retention",
        "schema.served", "wakeup.busy_polling", "wakeup.doorbell",
    ):  # fmt: skip
        module = importlib.import_module(f"listener.{name}")
        tree = ast.parse(Path(str(module.__file__)).read_text())
        # A statement from a file, or one that is composed of parts, is read as a whole, by its name in the module. So
        # are the statements of a dictionary.
        composed = {
            node.target if isinstance(node, ast.AnnAssign) else node.targets[0]: node.value
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            and isinstance(node.value, ast.BinOp | ast.Call | ast.DictComp)
        }
        messages = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        parts = {id(part) for whole in (*composed.values(), *messages) for part in ast.walk(whole)}
        texts = []
        for target in composed:
            value = getattr(module, ast.unparse(target))
            if isinstance(value, dict):
                texts += [(text, f"{target.lineno} {key}") for key, text in value.items()]
            else:
                texts.append((value, str(target.lineno)))
        texts += [
            (node.value, str(node.lineno))
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and id(node) not in parts
        ]
        for text, line in texts:
            if isinstance(text, str) and _SQL.match(text):
                found[f"{name.rpartition('.')[2]}:{line}"] = text
    return found


_SQL = re.compile(r"\s*(select|with|insert into|update|delete from|status::text) ")


def fill_public(database: Database) -> None:
    """Lets ``ATTACKER`` create its functions and operators in ``public``."""
    with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
        make_login(superuser, ATTACKER, None)
        superuser.execute(
            sql.SQL("grant create, usage on schema public to {}").format(sql.Identifier(ATTACKER))
        )
        there = superuser.execute(
            "select distinct proname::text from pg_catalog.pg_proc "
            "where pronamespace = 'pg_catalog'::regnamespace and proname = any (%s)",
            (called_functions(),),
        ).fetchall()
    script = _FILL_PUBLIC
    for name, value in {
        "attacker": ATTACKER,
        "types": _TYPES,
        "operators": _OPERATORS,
        "functions": f"{{{','.join(sorted(name for (name,) in there))}}}",
    }.items():
        script = script.replace(f"{{{name}}}", value)
    with psycopg.connect(database.dsn_as(ATTACKER), autocommit=True) as attacker:
        attacker.execute(script.encode())


@contextmanager
def copy_of(server: Server, database: Database) -> Iterator[Database]:
    """A copy of a database to which nobody is connected."""
    name = f"test_{uuid4().hex[:12]}"
    with psycopg.connect(server.uri, autocommit=True) as superuser:
        superuser.execute(
            sql.SQL("create database {} template {} owner postgres strategy file_copy").format(
                sql.Identifier(name), sql.Identifier(database.name)
            )
        )
        try:
            yield Database(name, server, database.user)
        finally:
            superuser.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def victims(database: Database) -> str:
    """Says how often another role than the attacker's has run its code, and what of it last; empty: never."""
    with psycopg.connect(database.superuser_dsn, options="-c search_path=pg_catalog") as superuser:
        row = superuser.execute(
            "select case when r.is_called then format('%s times, last %s', r.last_value, n.name) else '' end "
            "from public.evil_ran r, public.evil_last l left join public.evil_names n on n.which::bigint = l.last_value"
        ).fetchone()
    assert row is not None
    return str(row[0])


_OURS = ("enqueue_push", "push_disable_token")
"""Functions of ours in ``public`` that statements call."""


def resolved_to(connection: psycopg.Connection[Any], statement: Any, values: Any) -> list[str]:
    """The functions and operators in ``public`` that Postgres takes a statement to mean, as psycopg would send it.

    A function is made of the statement, and asked what it depends on. It leaves nothing behind.
    """
    query = PostgresQuery(Transformer(connection))
    query.convert(statement, values)
    text = query.query.decode()
    for number, (oid, value) in enumerate(zip(query.types, query.params or (), strict=True), 1):
        if oid == 0:  # what has no type yet is taken as a literal is
            text = re.sub(rf"\${number}\b", f"'{bytes(value or b'').decode()}'", text)
    with connection.transaction(force_rollback=True):
        row = connection.execute(
            "select pg_catalog.string_agg(case o when 0 then 'text' else pg_catalog.format_type(o::oid, null) end, "
            "', ' order by n) from pg_catalog.unnest(%s::int8[]) with ordinality as t(o, n)",
            ([int(oid) for oid in query.types],),
        ).fetchone()
        assert row is not None
        connection.execute("create schema test_resolution")
        connection.execute(
            f"create function test_resolution.f({row[0] or ''}) returns void language sql "
            f"begin atomic {text}; end".encode()
        )
        found = connection.execute(
            "select pg_catalog.pg_describe_object(d.refclassid, d.refobjid, 0) from pg_catalog.pg_depend d "
            "where d.objid = 'test_resolution.f'::regproc and d.refclassid in "
            "('pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_operator'::regclass)"
        ).fetchall()
    ours = (
        "function push_listener.",
        *(f"function {schema}{name}(" for schema in ("", "public.") for name in _OURS),
    )
    return sorted(what for (what,) in found if not what.startswith(ours))


# --- what only looks like a call, and what is looked up ------------------------------------------------------------

_SYNTAX = {
    "all", "and", "any", "array", "by", "coalesce", "conflict", "else", "exists", "extract", "filter", "from",
    "greatest", "in", "join", "lateral", "least", "limit", "materialized", "not", "nullif", "on", "or", "over",
    "select", "then", "values", "when", "where",
}  # fmt: skip
_NAMED = re.compile(
    r"\b(?:from|join|update|into|using) (?!public\.|push_listener\.|pg_catalog\.)([a-z_]\w*)\b(?!\()"
)


_CTE = re.compile(r"\b([a-z_]\w*)(?:\([a-z_, ]+\))? as (?:materialized )?\(")


def looked_up(statement: str) -> list[str]:
    """The functions and relations that a statement names without their schema."""
    text = re.sub(r"--[^\n]*|'[^']*'", "''", re.sub(r"%\(\w+\)[sbt]|%s", "$1", statement))
    text = re.sub(r"extract\(epoch from", "extract(", text)
    own = {"set", "skip", "of", "lateral", *_CTE.findall(text)}
    text = _CTE.sub(r"\1 as (", text)
    found = []
    for match in re.finditer(r"(?<![\w.])([a-z_]\w*)\s*\(", text):
        name, before = match[1], text[: match.start()].split()[-1:]
        is_alias = name == "as" or before == ["as"] or (before and before[0].endswith(")"))
        if name in _SYNTAX or is_alias or (name == "unnest" and _arguments(text[match.end() :]) > 1):
            continue
        found.append(f"{name}()")
    # What comes after "distinct from" is no table.
    return found + [name for name in _NAMED.findall(text.replace("distinct from", "")) if name not in own]


def _arguments(text: str) -> int:
    """How many there are up to the parenthesis that closes."""
    depth, count = 0, 1
    for character in text:
        if character in "([":
            depth += 1
        elif character in ")]":
            if depth == 0:
                return count
            depth -= 1
        elif character == "," and depth == 0:
            count += 1
    raise AssertionError(text)


# --- tables whose columns are of other types than ours would be ---------------------------------------------------

_WANTED = re.compile(r"\('(\w+)', '(\w+)', '\{([\w,]+)\}'")


def other_types(choice: int) -> str:
    """The four tables, each column of the ``choice``-th other type that can be adopted, or of the last."""
    first, *_ = migrate.load()
    columns: dict[str, list[str]] = {}
    for relation, name, types in _WANTED.findall(first.up.partition("written(relation")[0]):
        others = types.split(",")[1:] or types.split(",")
        extra = {"id": " primary key default gen_random_uuid()", "token": " primary key"}.get(name, "")
        if name == "created_at":
            extra = " default now()"
        if name == "status" and relation == "push_notifications":
            extra = " not null default 'pending'"
        columns.setdefault(relation, []).append(f'"{name}" {others[min(choice, len(others) - 1)]}{extra}')
    assert len(columns) == 4
    return "".join(f"create table public.{relation} ({', '.join(of)});\n" for relation, of in columns.items())


def make_login(superuser: psycopg.Connection[Any], name: str, role: str | None) -> None:
    """A login role, with the rights of another, unless the server has it from another test."""
    if superuser.execute("select from pg_catalog.pg_roles where rolname = %s", (name,)).fetchone() is None:
        member = sql.SQL(" in role {}").format(sql.Identifier(role)) if role else sql.SQL("")
        superuser.execute(sql.SQL("create role {} login").format(sql.Identifier(name)) + member)
