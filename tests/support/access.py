"""Databases on which privileges are looked at: fresh and adopted, under old and new default privileges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from uuid import UUID

import psycopg
from psycopg import sql

from listener.schema import migrate
from tests.support.postgres import Database, Server

WORKER = "test_push_worker"
"""Logs in, and has what push_listener has and nothing else."""

OPERATOR = "test_push_operator"
"""Logs in, and has what push_listener_operator has and nothing else."""


OWNER = UUID("00000000-0000-4000-8000-00000000000a")
OTHER = UUID("00000000-0000-4000-8000-00000000000b")
STRANGER = UUID("00000000-0000-4000-8000-00000000000c")
PUSH = UUID("00000000-0000-4000-8000-0000000000a1")
OTHERS_PUSH = UUID("00000000-0000-4000-8000-0000000000b1")


class Regime(StrEnum):
    """What a project grants by itself on a new table: everything to everybody, or nothing."""

    OLD = "old"
    NEW = "new"


APPLICATION = """
create table public.drivers (id uuid primary key, secret text);
alter table public.drivers enable row level security;

create table public.push_notifications (
  id uuid primary key default gen_random_uuid(),
  driver_id uuid,
  user_id uuid,
  title text not null,
  body text not null,
  data jsonb,
  channel text default 'general',
  priority text default 'normal',
  status text not null default 'pending' check (status in ('pending', 'sent', 'failed')),
  attempts smallint default 0,
  last_error text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
alter table public.push_notifications enable row level security;
-- For everybody, as policies are when nobody thinks of it; and one that reads a table of the application.
create policy "read own" on public.push_notifications for select using (
  driver_id = (select auth.uid()) or exists (select from public.drivers d where d.secret = 'impossible'));
create policy "add own" on public.push_notifications for insert with check (driver_id = (select auth.uid()));
create policy "change own" on public.push_notifications for update using (driver_id = (select auth.uid()));
create policy "remove own" on public.push_notifications for delete to authenticated
  using (driver_id = (select auth.uid()));
create function public.touch() returns trigger language plpgsql as
  $$ begin new.updated_at := now(); return new; end $$;
create trigger touch before update on public.push_notifications for each row execute function public.touch();
grant select, insert, update, delete on public.push_notifications to authenticated;
grant select on public.drivers to anon, authenticated;

create table public.push_delivery_logs (
  id bigserial primary key,
  push_id uuid not null references public.push_notifications on delete cascade on update cascade,
  status text not null,
  network text,
  created_at timestamptz not null default now()
);
alter table public.push_delivery_logs enable row level security;
create policy "logs of own" on public.push_delivery_logs to authenticated using (
  exists (select from public.push_notifications p where p.id = push_id and p.driver_id = (select auth.uid())));
grant select, insert, update, delete on public.push_delivery_logs to authenticated;
grant usage on sequence public.push_delivery_logs_id_seq to authenticated;

create table public.push_devices (
  token text primary key,
  user_id uuid not null,
  platform text,
  model text,
  created_at timestamptz not null default now()
);
alter table public.push_devices enable row level security;
create policy own on public.push_devices to authenticated using (user_id = (select auth.uid()));
grant select, insert, update, delete on public.push_devices to authenticated;

create table public.telemetry_logs (
  id uuid primary key default gen_random_uuid(),
  type text not null,
  message text not null,
  meta jsonb,
  "timestamp" timestamptz,
  user_id uuid,
  build integer
);
alter table public.telemetry_logs enable row level security;
create policy own on public.telemetry_logs to authenticated using (user_id = (select auth.uid()));
create policy unknown on public.telemetry_logs for insert to anon with check (user_id is null);
grant select, insert, update, delete on public.telemetry_logs to authenticated;
grant insert on public.telemetry_logs to anon;
grant all on public.push_notifications, public.push_delivery_logs, public.push_devices, public.telemetry_logs
  to service_role;
grant usage on sequence public.push_delivery_logs_id_seq to service_role;
"""
"""An application that had every one of the four tables, and let its users work on them directly."""


CALLS = {
    "enqueue_push": f"select enqueue_push(p_user_id => '{OWNER}', p_title => 't')",
    "enqueue_pushes": (
        "select 1 where (select is_new from enqueue_pushes(array[jsonb_build_object("
        f"'user_id', '{OWNER}', 'title', 't')]))"
    ),
    "get_push": f"select 1 where get_push('{PUSH}') ->> 'id' = '{PUSH}'",
    "cancel_push": f"select cancel_push('{PUSH}')",
    "requeue_pushes": f"select requeue_pushes(array['{PUSH}']::uuid[])",
    "fetch_pending_pushes": "select (select count(*) from fetch_pending_pushes(1))",
    "mark_push_sent": f"select mark_push_sent('{PUSH}')",
    "mark_push_failed": f"select mark_push_failed('{OTHERS_PUSH}', 'no')",
    "record_delivery_receipt": f"select 1 where record_delivery_receipt('{PUSH}', 'token of {OWNER}', 'opened')",
    "record_delivery_receipts": (
        "select 1 where (select recorded from record_delivery_receipts(array[jsonb_build_object("
        f"'push_id', '{PUSH}', 'device_token', 'token of {OWNER}', 'status', 'clicked')]))"
    ),
    "register_device": f"select register_device('another', 'web', '{OWNER}')",
    "unregister_device": f"select 1 where unregister_device('token of {OWNER}')",
    "flush_telemetry": (
        f'select 1 where flush_telemetry(array[\'{{"type": "a", "message": "b", "user_id": "{OWNER}"}}\''
        "]::jsonb[]) ->> 'accepted' = '1'"
    ),
    "get_push_delivery_stats": "select get_push_delivery_stats(7)",
    "push_is_service": "select push_is_service('anon')",
    "push_listener.drift": "select 1 where (select count(*) from push_listener.drift()) >= 0",
    "push_listener.api": "select 1 where (select count(*) from push_listener.api()) > 0",
    "push_listener.unclaimable": (
        "select 1 where (select count(*) from push_listener.unclaimable(1, '{}', 10, 0.1, 'public')) >= 0"
    ),
    "push_listener.is_alive": "select push_listener.is_alive(1)",
    "push_listener.ended_by_code": "select count(*) from push_listener.ended_by_code(2)",
    "push_listener.operator_requeue": (
        f"select push_listener.operator_requeue(array['{PUSH}']::uuid[], now(), 'anna', 'why', '{{}}', '{PUSH}')"
    ),
    "push_listener.operator_cancel": (
        f"select push_listener.operator_cancel(array['{PUSH}']::uuid[], now(), 'anna', 'why', '{{}}', '{PUSH}')"
    ),
    "push_listener.operator_reveal": f"select * from push_listener.operator_reveal('{PUSH}', 'anna')",
    "push_listener.operator_send": f"select push_listener.operator_send(null, '{OWNER}', 't', 'b', 'anna')",
    "push_listener.settled_before": f"select push_listener.settled_before('{PUSH}', 'sent')",
    "push_disable_token": f"select push_disable_token('token of {OWNER}', 'UNREGISTERED')",
}
"""Each makes a function take effect on what is OWNER's, and returns a row if it did."""


@contextmanager
def project(server: Server, regime: Regime, application: str = "") -> Iterator[Database]:
    """A Supabase project, with an application of before or without, and migrated."""

    def build(database: Database) -> None:
        prepare(database, regime, application)
        migrate.apply(database.dsn)

    with server.prepared(f"project {regime} {application}", build) as database:
        yield database


def prepare(database: Database, regime: Regime, application: str) -> None:
    """Sets the default privileges and makes the application's tables, before any migration."""
    with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
        connection.execute((migrate.sql_directory("supabase") / f"privileges_{regime}.sql").read_bytes())
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(application.encode())


def make_worker(database: Database) -> None:
    """Makes the login role ``WORKER`` unless the server has it from another test."""
    _make_login(database, WORKER, "push_listener")


def make_operator(database: Database) -> None:
    """Makes the login role ``OPERATOR`` unless the server has it from another test."""
    _make_login(database, OPERATOR, "push_listener_operator")


def _make_login(database: Database, name: str, role: str) -> None:
    with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
        if connection.execute("select from pg_roles where rolname = %s", (name,)).fetchone() is None:
            connection.execute(
                sql.SQL("create role {} login in role {}").format(sql.Identifier(name), sql.Identifier(role))
            )


def grants(database: Database, application: str = "") -> set[tuple[str, ...]]:
    """Every grant on what is push-listener's: kind, object, column, grantee, privilege, with grant option or not.

    The owner is called OWNER, whoever that is.
    """
    with psycopg.connect(database.superuser_dsn) as connection:
        rows = connection.execute(
            """
            with objects as (
              select c.relkind::text as kind, c.oid::regclass::text as name, '' as part, c.relowner as owner,
                     coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char",
                                                   c.relowner)) as acl
                from pg_class c
                where c.relkind in ('r', 'v', 'S') and c.relname <> 'drivers'
                  and c.relnamespace in ('public'::regnamespace, to_regnamespace('push_listener'))
              union all
              select 'column', c.oid::regclass::text, a.attname, c.relowner, a.attacl
                from pg_class c
                join pg_attribute a on a.attrelid = c.oid and a.attacl is not null and not a.attisdropped
                where c.relnamespace in ('public'::regnamespace, to_regnamespace('push_listener'))
              union all
              select 'function', p.oid::regprocedure::text, '', p.proowner,
                     coalesce(p.proacl, acldefault('f', p.proowner))
                from pg_proc p
                where p.pronamespace in ('public'::regnamespace, to_regnamespace('push_listener'))
                  and p.proname <> 'touch'
              union all
              select 'schema', nspname, '', nspowner, coalesce(nspacl, acldefault('n', nspowner))
                from pg_namespace where nspname = 'push_listener'
            )
            select o.kind, o.name, o.part,
                   case when a.grantee = o.owner then 'OWNER' when a.grantee = 0 then 'PUBLIC'
                        else a.grantee::regrole::text end,
                   a.privilege_type, a.is_grantable::text
              from objects o cross join lateral aclexplode(o.acl) a
            """
        ).fetchall()
    return {tuple(map(str, row)) for row in rows}
