-- What the application had before, so that "migrate --down" can restore it, and what becomes of it now, as warnings.

create table push_listener.adoption_record (
  kind text not null,
  relation text not null,
  name text not null default '',
  definition text,
  primary key (kind, relation, name)
);
comment on table push_listener.adoption_record is
  'What the application had before push-listener was installed, and what of it was changed. "migrate --down" restores it from here.';
-- What existed:
--   table                 a table
--   column    name        each of its columns
--   security  definition  its row-level security: off, on or forced
--   waits     definition  push_notifications: the condition for a row that waits to be sent
--   due       definition  push_notifications: since when such a row is due, as far as the table tells
--   trial     definition  push_notifications: the id of a row that waits, on which the step "queue" tries what is written
--   view, function        what an application may provide in place of ours
--   grant     definition  a privilege, as the statement that grants it
--   keep      name        a privilege that a role keeps, with its columns: see the step "privileges"
-- What was changed:
--   check     name        a CHECK that was widened: its definition
--   required  name        a column that was NOT NULL: the name of that constraint, if it has one
--   type      name        a column that was too short: its type
--   default   name        a column that had no default
--   storage   name        a storage parameter that was not set
-- And:
--   counted               the statistics count what had ended before: see the step "history"

insert into push_listener.adoption_record (kind, relation)
  select 'table', c.relname
    from pg_class c
    where c.relnamespace = 'public'::regnamespace
      and c.relname in ('push_notifications', 'push_delivery_logs', 'push_devices', 'telemetry_logs');
insert into push_listener.adoption_record (kind, relation, name)
  select 'column', b.relation, a.attname
    from push_listener.adoption_record b
    join pg_class c on c.relname = b.relation and c.relnamespace = 'public'::regnamespace
    join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where b.kind = 'table';
insert into push_listener.adoption_record (kind, relation, definition)
  select 'security', b.relation,
         case when not c.relrowsecurity then 'off' when c.relforcerowsecurity then 'forced' else 'on' end
    from push_listener.adoption_record b
    join pg_class c on c.relname = b.relation and c.relnamespace = 'public'::regnamespace
    where b.kind = 'table';
insert into push_listener.adoption_record (kind, relation)
  select 'view', 'push_recipients' where to_regclass('public.push_recipients') is not null
  union all
  select 'function', 'push_disable_token' where to_regprocedure('public.push_disable_token(text, text)') is not null;

-- The steps that follow change adopted tables with these functions, and their way back uses restore_table().

\ir ../functions/push_listener/adopted.sql
\ir ../functions/push_listener/adopt.sql
\ir ../functions/push_listener/set_storage_defaults.sql
\ir ../functions/push_listener/is_as_left.sql
\ir ../functions/push_listener/keeps.sql
\ir ../functions/push_listener/losses.sql
\ir ../functions/push_listener/restore_not_null.sql
\ir ../functions/push_listener/restore_checks.sql
\ir ../functions/push_listener/restore_table.sql

-- What of it deserves a look ---------------------------------------------------------------------------------------

do $$
declare
  queue constant regclass := case when push_listener.adopted('push_notifications') then 'public.push_notifications' end;
  found record;
begin
  for found in
    select format('row-level security is off on %I: every role with a grant on it reaches all of its rows', b.relation) as line
      from push_listener.adoption_record b
      where b.kind = 'security' and b.definition = 'off'
    union all
    select format('authenticated reads every column of %I that there is, and will read none that push-listener adds. Where the application asks for all columns (select *), it is refused then: let it name the columns, or run push-listener migrate --share-new-columns, which lets users read the new ones, device_token among them, in the rows that the application''s policies show them', b.relation)
      from push_listener.adoption_record b
      where b.kind = 'table' and exists (
        select from pg_class c
          join pg_roles r on r.rolname = 'authenticated'
          where c.relname = b.relation and c.relnamespace = 'public'::regnamespace
            and has_table_privilege(r.oid, c.oid, 'select')
            and (not c.relrowsecurity or exists (
              select from pg_policy p, unnest(p.polroles) for_role
                where p.polrelid = c.oid and p.polpermissive and p.polcmd in ('r', '*')
                  and (for_role = 0 or pg_has_role(r.oid, for_role, 'usage')))))
    union all
    select format('%I is unlogged: after a crash of the database it is empty', b.relation)
      from push_listener.adoption_record b
      join pg_class c on c.relname = b.relation and c.relnamespace = 'public'::regnamespace
      where b.kind = 'table' and c.relpersistence = 'u'
    union all
    select format('push_notifications.status is %s where nothing else is said: a row is sent once it is ''pending''',
                  pg_get_expr(d.adbin, d.adrelid))
      from pg_attrdef d
      join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum and a.attname = 'status'
      where d.adrelid = queue and pg_get_expr(d.adbin, d.adrelid) !~ '^''pending'''
    union all
    select 'push_notifications.status has no default, and is given one: a row of which nothing else is said will be ''pending'', and sent'
      from pg_attribute a
      where a.attrelid = queue and a.attname = 'status' and not a.atthasdef
    union all
    select format('push_notifications.%I is NOT NULL without a default: enqueue_push and push-listener send, which know nothing of it, cannot add rows',
                  a.attname)
      from pg_attribute a
      where a.attrelid = queue and a.attnum > 0 and not a.attisdropped
        and a.attnotnull and not a.atthasdef and a.attidentity = ''
        and a.attname <> all (push_listener.columns('push_notifications'))
    union all
    select format('the trigger %I on push_notifications makes HTTP requests (%s): if they send pushes, drop it before push-listener runs, or each is sent twice',
                  g.tgname, g.tgfoid::regprocedure)
      from pg_trigger g
      join pg_proc p on p.oid = g.tgfoid
      where g.tgrelid = queue and not g.tgisinternal
        and (p.pronamespace = to_regnamespace('supabase_functions') or p.prosrc ~* '\mhttp(_get|_post|_request)?\s*\(')
  loop
    raise warning '%', found.line;
  end loop;
end
$$;

-- The rows that wait, and since when they are due. The step "backlog" decides about each by these two expressions.

insert into push_listener.adoption_record (kind, relation, definition)
select e.kind, 'push_notifications', e.definition
  from (
    select coalesce(min(name) filter (where name in ('created_at', 'updated_at')), 'null::timestamptz') as written_at,
           bool_or(name = 'next_attempt_at') as is_scheduled,
           bool_or(name = 'delivery_attempts') as is_counted
      from push_listener.adoption_record
      where kind = 'column' and relation = 'push_notifications'
  ) c
  cross join lateral (values
    ('waits', 'status = ''pending'''
       || case when is_scheduled and is_counted then
            ' or (status in (''processing'', ''failed'') and next_attempt_at is not null and delivery_attempts > 0)'
          else '' end),
    ('due', case when is_scheduled then format('coalesce(next_attempt_at, %s)', written_at) else written_at end)
  ) as e(kind, definition)
  where push_listener.adopted('push_notifications');

do $$
declare
  waits constant text := (
    select definition from push_listener.adoption_record where kind = 'waits' and relation = 'push_notifications');
  due constant text := (
    select definition from push_listener.adoption_record where kind = 'due' and relation = 'push_notifications');
  patience constant text := coalesce(nullif(current_setting('push_listener.expire_older_than', true), ''), '1 day');
  fresh bigint;
  stale bigint;
  undated bigint;
  claimed bigint;
  one_of_them uuid;
  unreachable bigint;
  -- Which columns say where a push goes, as far as the table has them, and where the devices of a user are.
  is_named constant text := coalesce(
    (select string_agg(format('%I is not null', name), ' or ' order by name) from push_listener.adoption_record
       where kind = 'column' and relation = 'push_notifications' and name in ('device_token', 'topic', 'condition')),
    'false');
  is_reached constant text := case
    when not exists (select from push_listener.adoption_record
                       where kind = 'column' and relation = 'push_notifications' and name = 'user_id') then 'false'
    when to_regclass('public.push_recipients') is not null
      then 'exists (select from public.push_recipients r where r.user_id = p.user_id and r.token is not null)'
    when exists (select from push_listener.adoption_record
                   where kind = 'column' and relation = 'push_devices' and name = 'user_id')
      then 'exists (select from public.push_devices r where r.user_id = p.user_id)'
    else 'false' end;
begin
  if not exists (select from push_listener.adoption_record
                   where kind = 'column' and relation = 'push_notifications' and name = 'status') then
    return; -- preflight has refused such a table if it has rows
  end if;
  execute format(
    'select count(*) filter (where waits and due >= $1),
            count(*) filter (where waits and due < $1),
            count(*) filter (where waits and due is null),
            count(*) filter (where not waits),
            min(id::text) filter (where waits and status = ''pending''),
            count(*) filter (where waits and coalesce(due >= $1, $1 = ''-infinity'') and not (is_named or is_reached))
       from (select id, status, %s as waits, %s as due, %s as is_named, %s as is_reached
               from public.push_notifications p
               where status in (''pending'', ''processing'') or (%1$s)) p', waits, due, is_named, is_reached)
    into fresh, stale, undated, claimed, one_of_them, unreachable
    using case when patience = 'never' then '-infinity' else now() - patience::interval end;
  if patience = 'never' then
    fresh := fresh + undated;
    undated := 0;
  end if;
  if fresh + stale + undated > 0 then
    raise warning 'push_notifications has rows that wait: % of them will be sent, and % will expire%',
      fresh, stale + undated,
      case when stale + undated > 0 then format(
        ' (older than %s: %s; of unknown age: %s; push-listener migrate --send-old sends them all the same)',
        patience, stale, undated) else '' end;
  end if;
  if unreachable > 0 then
    raise warning '% of the rows that will be sent name no device, topic or condition, and their user has no device in push_recipients: each would end as dead (NO_RECIPIENTS). Before push-listener runs, let push_recipients list the devices (docs/adoption.md, "Tokens in a table of the application")',
      unreachable;
  end if;
  insert into push_listener.adoption_record (kind, relation, definition)
    values ('trial', 'push_notifications', one_of_them);
  if claimed > 0 then
    raise warning 'push_notifications has rows in status ''processing'', in the hands of the application: % of them, which are left to it',
      claimed;
  end if;
end
$$;
