-- Looks before anything is touched. What cannot be adopted stops here, all of it named at once. What can is told in
-- warnings: what will become of the rows that wait, and what of the application's own deserves a look.
--
-- push_listener is this project's own schema: it is not exposed by PostgREST, and nothing in it is for applications.

create table push_listener.before (
  kind text not null,
  relation text not null,
  name text not null default '',
  definition text,
  primary key (kind, relation, name)
);
comment on table push_listener.before is
  'What the application had before push-listener came, and what of it was changed: from this the way back restores it.';
-- What was there:
--   table                 a table
--   column    name        each column of it
--   security  definition  its row-level security: off, on or forced
--   waits     definition  push_notifications: the condition by which a row waits to be sent
--   due       definition  push_notifications: since when such a row is due, as far as that can be told
--   view, function        what an application may bring of its own in place of ours
-- What was there and has been changed:
--   check     name        a CHECK that was widened: its definition
--   required  name        a column that was NOT NULL: the name of that constraint, where it has one
--   type      name        a column that was too short: its type
--   default   name        a column that had no default
--   storage   name        a storage parameter that was not set

do $preflight$
declare
  -- Kept apart: to name the table in a query would fail where there is none.
  queue constant regclass := (
    select oid from pg_class
      where oid = to_regclass('public.push_notifications') and relkind = 'r' and pg_has_role(relowner, 'usage'));
  obstacles text[];
  found record;
  probe jsonb;
  allowed boolean;
  refused text[];
  due text;
  waits text;
  patience text := coalesce(nullif(current_setting('push_listener.expire_older_than', true), ''), '1 day');
  fresh bigint;
  stale bigint;
  undated bigint;
  claimed bigint;
begin
  with wanted(relation, name, types) as (values
    ('push_notifications', 'id', '{uuid}'::regtype[]),
    ('push_notifications', 'user_id', '{uuid}'),
    ('push_notifications', 'device_token', '{text,varchar}'),
    ('push_notifications', 'topic', '{text,varchar}'),
    ('push_notifications', 'condition', '{text,varchar}'),
    ('push_notifications', 'title', '{text,varchar}'),
    ('push_notifications', 'body', '{text,varchar}'),
    ('push_notifications', 'data', '{jsonb,json}'),
    ('push_notifications', 'channel', '{text,varchar}'),
    ('push_notifications', 'priority', '{text,varchar}'),
    ('push_notifications', 'image', '{text,varchar}'),
    ('push_notifications', 'options', '{jsonb,json}'),
    ('push_notifications', 'expires_at', '{timestamptz}'),
    ('push_notifications', 'collapse_key', '{text,varchar}'),
    ('push_notifications', 'idempotency_key', '{text,varchar}'),
    ('push_notifications', 'next_attempt_at', '{timestamptz}'),
    ('push_notifications', 'status', '{text,varchar}'),
    ('push_notifications', 'retry_count', '{int4,int2,int8}'),
    ('push_notifications', 'last_retry_at', '{timestamptz}'),
    ('push_notifications', 'delivery_attempts', '{int4,int8}'),
    ('push_notifications', 'last_error', '{text,varchar}'),
    ('push_notifications', 'error_code', '{text,varchar}'),
    ('push_notifications', 'fcm_message_id', '{text,varchar}'),
    ('push_notifications', 'claimed_by', '{int4,int8}'),
    ('push_notifications', 'lost_claims', '{int4,int2,int8}'),
    ('push_notifications', 'sent_at', '{timestamptz}'),
    ('push_notifications', 'delivered_at', '{timestamptz}'),
    ('push_notifications', 'created_at', '{timestamptz}'),
    ('push_notifications', 'updated_at', '{timestamptz}'),
    ('push_delivery_logs', 'push_id', '{uuid}'),
    ('push_delivery_logs', 'device_token', '{text,varchar}'),
    ('push_delivery_logs', 'status', '{text,varchar}'),
    ('push_delivery_logs', 'details', '{jsonb}'),
    ('push_delivery_logs', 'created_at', '{timestamptz}'),
    ('push_devices', 'token', '{text,varchar}'),
    ('push_devices', 'user_id', '{uuid}'),
    ('push_devices', 'platform', '{text,varchar}'),
    ('push_devices', 'created_at', '{timestamptz}'),
    ('push_devices', 'updated_at', '{timestamptz}'),
    ('push_devices', 'disabled_at', '{timestamptz}'),
    ('push_devices', 'disabled_reason', '{text,varchar}'),
    ('telemetry_logs', 'type', '{text,varchar}'),
    ('telemetry_logs', 'message', '{text,varchar}'),
    ('telemetry_logs', 'meta', '{jsonb}'),
    ('telemetry_logs', 'timestamp', '{timestamptz}'),
    ('telemetry_logs', 'user_id', '{uuid}'),
    ('telemetry_logs', 'batch_id', '{uuid}'),
    ('telemetry_logs', 'processed_at', '{timestamptz}'),
    ('telemetry_logs', 'created_at', '{timestamptz}')
  ),
  -- What push-listener writes has to fit. A varchar that is too short is widened, which rewrites nothing.
  written(relation, name, length) as (values
    ('push_notifications', 'status', 10),
    ('push_notifications', 'last_error', null),
    ('push_notifications', 'error_code', null),
    ('push_notifications', 'fcm_message_id', null),
    ('push_delivery_logs', 'status', 9),
    ('push_delivery_logs', 'device_token', 4096),
    ('push_devices', 'token', 4096),
    ('push_devices', 'platform', 7),
    ('push_devices', 'disabled_reason', null)
  ),
  -- The functions that come: their arguments, the types of these, and how many have to be given.
  offered(name, arguments, types, required) as (values
    ('fetch_pending_pushes', '{p_limit}'::text[], '{int4}'::regtype[], 0),
    ('mark_push_sent', '{p_push_id}', '{uuid}', 1),
    ('mark_push_failed', '{p_push_id,p_error}', '{uuid,text}', 2),
    ('record_delivery_receipt', '{p_push_id,p_device_token,p_status,p_details}', '{uuid,text,text,jsonb}', 3),
    ('flush_telemetry', '{p_payloads}', '{jsonb[]}', 1),
    ('get_push_delivery_stats', '{p_days}', '{int4}', 0),
    ('enqueue_push',
     '{p_user_id,p_device_token,p_topic,p_condition,p_title,p_body,p_data,p_channel,p_priority,p_image,p_options,p_collapse_key,p_idempotency_key,p_expires_at,p_send_at}',
     '{uuid,text,text,text,text,text,jsonb,text,text,text,jsonb,text,text,timestamptz,timestamptz}', 0),
    ('register_device', '{p_token,p_platform,p_user_id}', '{text,text,uuid}', 2),
    ('unregister_device', '{p_token}', '{text}', 1),
    ('cancel_push', '{p_push_id}', '{uuid}', 1),
    ('push_is_service', '{p_role}', '{name}', 1),
    ('requeue_pushes', '{p_ids,p_error_code,p_since,p_limit}', '{uuid[],text,timestamptz,int4}', 0)
  ),
  relations as (
    select c.oid, c.relname, c.relkind, c.relowner, c.relforcerowsecurity, c.relhasrules, c.relhassubclass, c.reloftype
      from pg_class c
      where c.relnamespace = 'public'::regnamespace
        and c.relname in ('push_notifications', 'push_delivery_logs', 'push_devices', 'telemetry_logs')
  ),
  tables as (
    select * from relations where relkind = 'r'
  ),
  columns as (
    select a.*, t.relname, format('%I.%I', t.relname, a.attname) as name, format_type(a.atttypid, a.atttypmod) as type,
           format('alter table public.%I alter column %I', t.relname, a.attname) as alter
      from tables t
      join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
  ),
  short as (
    select c.*
      from columns c
      join written w on w.relation = c.relname and w.name = c.attname
      where c.atttypid = 'varchar'::regtype and c.atttypmod <> -1 and (c.atttypmod - 4 < w.length) is not false
  ),
  unique_keys as (
    select t.oid, t.relname, i.indexrelid, i.indpred is null and i.indisvalid as whole, k.names
      from tables t
      join pg_index i on i.indrelid = t.oid and i.indisunique
      cross join lateral (
        -- NULL stands for an expression.
        select array_agg(a.attname::text) as names
          from generate_series(0, i.indnkeyatts - 1) n
          left join pg_attribute a on a.attrelid = t.oid and a.attnum = i.indkey[n] and a.attnum > 0
      ) k
  ),
  routines as (
    select p.proname, p.oid::regprocedure as signature, array(select unnest(p.proargtypes)) as types, i.names,
           coalesce(i.names[1:p.pronargs - p.pronargdefaults], '{}') as required,
           -- Under another name it could do more than before, with the columns that come. So nobody may call it first.
           format('drop %s %s; or, to keep it, first revoke execute on %1$s %2$s from %s, and then alter %1$s %2$s rename to ...',
                  case p.prokind when 'p' then 'procedure' else 'function' end, p.oid::regprocedure,
                  (select string_agg(name, ', ')
                     from (select 'public' as name
                           union all
                           select quote_ident(grantee.rolname)
                             from aclexplode(p.proacl) a
                             join pg_roles grantee on grantee.oid = a.grantee and grantee.oid <> p.proowner) g)) as way_out
      from pg_proc p
      cross join lateral (
        select coalesce(array_agg(name order by place) filter (where mode is null or mode in ('i', 'b', 'v')), '{}') as names
          from unnest(p.proargnames, p.proargmodes) with ordinality as argument(name, mode, place)
      ) i
      where p.pronamespace = 'public'::regnamespace
  ),
  obstacle(line) as (
    -- The server and the role.
    select format('this is PostgreSQL %s, and 15 is the oldest that will do', current_setting('server_version'))
      where current_setting('server_version_num')::integer < 150000
    union all
    select format('%1$I may not create anything in the schema public: let its owner grant create on schema public to %1$I',
                  current_user)
      where not has_schema_privilege('public', 'create')
    union all
    select format('%I belongs to %I, of which %I is not a member: run this as %2$I',
                  r.relname, pg_get_userbyid(r.relowner), current_user)
      from relations r
      where not pg_has_role(r.relowner, 'usage')
    -- What the owner of a table or schema puts there, triggers say, runs with the rights of the functions that come, which
    -- are those of this role. A superuser, or the owner of the database, could do as much without it.
    union all
    select format('%1$s belongs to %2$I, whose triggers and defaults would run with the rights of %3$I, which are more: run this as %2$I, or let %3$I own it (alter %1$s owner to %3$I); if %2$I has no business there, drop it first',
                  o.name, r.rolname, current_user)
      from (
        select format('table public.%I', t.relname) as name, t.relowner as owner
          from tables t where pg_has_role(t.relowner, 'usage')
        union all
        select 'schema push_listener', n.nspowner from pg_namespace n where n.nspname = 'push_listener'
      ) o
      join pg_roles r on r.oid = o.owner
      join pg_database d on d.datname = current_database()
      where not (r.rolsuper or r.oid = d.datdba or pg_has_role(r.oid, current_user, 'usage'))
    union all
    select format('%1$I forces row-level security on its owner, and %2$I without BYPASSRLS does not see all of its rows: run this as a role that does, or alter table public.%1$I no force row level security',
                  t.relname, current_user)
      from tables t
      where t.relforcerowsecurity and not (select rolsuper or rolbypassrls from pg_roles where rolname = current_user)

    -- The tables.
    union all
    select format('%I is %s, and has to be an ordinary table: rename it', r.relname,
                  case r.relkind when 'v' then 'a view' when 'm' then 'a materialized view' when 'f' then 'a foreign table'
                    when 'p' then 'a partitioned table' when 'i' then 'an index' when 'S' then 'a sequence'
                    else 'no table' end)
      from relations r
      where r.relkind <> 'r'
    union all
    select format('%I %s, and push-listener cannot work with it so', t.relname,
                  case when t.reloftype <> 0 then 'is made of a type' when t.relhasrules then 'has rewrite rules'
                    else 'inherits or is inherited from' end)
      from tables t
      where t.reloftype <> 0 or t.relhasrules or t.relhassubclass
        or exists (select from pg_inherits i where i.inhrelid = t.oid)
    union all
    select format('%I has no column %I: add it, or rename the table', t.relname, key.name)
      from tables t
      join (values ('push_notifications', 'id'), ('push_devices', 'token')) as key(relation, name) on key.relation = t.relname
      where not exists (select from columns c where c.attrelid = t.oid and c.attname = key.name)
    union all
    select format('%s has no primary key or unique constraint for it alone: alter table public.%I add unique (%I)',
                  c.name, c.relname, c.attname)
      from columns c
      join (values ('push_notifications', 'id'), ('push_devices', 'token')) as key(relation, name)
        on key.relation = c.relname and key.name = c.attname
      where not exists (select from unique_keys u where u.oid = c.attrelid and u.whole and u.names = array[key.name])

    -- The columns.
    union all
    select format('%s is %s, and has to be %s: %s', c.name, c.type, array_to_string(w.types, ' or '),
             case
               when t.typtype = 'e' then format(
                 'alter table public.%I%s alter column %I type text using %3$I::text%s', c.relname,
                 case when d.adbin is not null then format(' alter column %I drop default,', c.attname) end, c.attname,
                 case when d.adbin is not null then format(
                   ', alter column %I set default %s', c.attname,
                   regexp_replace(pg_get_expr(d.adbin, d.adrelid), '::[^'']*$', '')) end)
               when c.atttypid = 'timestamp'::regtype then
                 'set timezone = ''UTC'', if that is what it holds, and ' || c.alter || ' type timestamptz, which rewrites nothing then'
               when c.atttypid = any ('{int2,bpchar,json}'::regtype[]) then
                 c.alter || ' type ' || w.types[1] || ', which rewrites the table'
               else 'rename it, or the table' end)
      from columns c
      join wanted w on w.relation = c.relname and w.name = c.attname
      join pg_type t on t.oid = c.atttypid
      left join pg_attrdef d on d.adrelid = c.attrelid and d.adnum = c.attnum
      where c.atttypid <> all (w.types)
    union all
    select format('%s is generated, and has to be written: %s drop expression', c.name, c.alter)
      from columns c
      join wanted w on w.relation = c.relname and w.name = c.attname
      where c.attgenerated <> ''
    union all
    select format('%s is %s, too short for what push-listener writes, and cannot be widened while there is %s: drop that, %s type text, and create it again',
                  s.name, s.type, string_agg(distinct user_of.it, ', '), s.alter)
      from short s
      cross join lateral (
        select pg_describe_object(d.classid, d.objid, d.objsubid) as it
          from pg_depend d
          where d.refclassid = 'pg_class'::regclass and d.refobjid = s.attrelid and d.refobjsubid = s.attnum
            and d.classid = any ('{pg_rewrite,pg_trigger,pg_policy,pg_proc,pg_publication_rel}'::regclass[])
        union all
        select 'the index ' || i.indexrelid::regclass
          from pg_depend d
          join pg_index i on i.indexrelid = d.objid and coalesce(i.indpred, i.indexprs) is not null
          where d.classid = 'pg_class'::regclass
            and d.refclassid = 'pg_class'::regclass and d.refobjid = s.attrelid and d.refobjsubid = s.attnum
        union all
        select format('the constraint %I', k.conname)
          from pg_constraint k
          where k.conrelid = s.attrelid and k.contype = 'c' and s.attnum = any (k.conkey)
            and (cardinality(k.conkey) > 1 or s.attname not in ('status', 'platform'))
        union all
        select format('the generated column %I', g.attname)
          from pg_depend d
          join pg_attrdef e on e.oid = d.objid
          join pg_attribute g on g.attrelid = e.adrelid and g.attnum = e.adnum and g.attgenerated <> ''
          where d.classid = 'pg_attrdef'::regclass
            and d.refclassid = 'pg_class'::regclass and d.refobjid = s.attrelid and d.refobjsubid = s.attnum
      ) user_of
      group by s.name, s.type, s.alter
    union all
    select format('%s is NOT NULL without a default, and push-listener, which knows nothing of it, adds rows: %s %s',
                  c.name, c.alter,
                  case when c.attname = 'id' then 'add generated by default as identity' else 'set default ..., or drop not null' end)
      from columns c
      where c.relname in ('push_delivery_logs', 'push_devices', 'telemetry_logs')
        and c.attnotnull and not c.atthasdef and c.attidentity = ''
        and not exists (select from wanted w where w.relation = c.relname and w.name = c.attname)
        and not (c.attname = 'id' and c.atttypid = 'uuid'::regtype) -- which is given one
    union all
    select format('the unique index %s lets a push have only one row for each %s, and there is one for each attempt and each receipt: drop it',
                  u.indexrelid::regclass, array_to_string(u.names, ', '))
      from unique_keys u
      where u.relname = 'push_delivery_logs' and u.names <@ '{push_id,device_token,status}'

    -- Names that push-listener's own things will have.
    union all
    select format('there is a trigger %I on %I, named as push-listener names its own: alter trigger %1$I on public.%2$I rename to ...',
                  g.tgname, t.relname)
      from tables t
      join pg_trigger g on g.tgrelid = t.oid and not g.tgisinternal and g.tgname like 'push\_listener\_%'
    union all
    select format('there is %s %I, named as an index that push-listener makes: rename it',
                  case c.relkind when 'i' then 'an index' when 'r' then 'a table' else 'a relation' end, c.relname)
      from pg_class c
      where c.relnamespace = 'public'::regnamespace
        and c.relname in (
          'push_notifications_due', 'push_notifications_idempotency', 'push_notifications_given_up',
          'push_notifications_over', 'push_delivery_logs_push', 'push_devices_live', 'push_devices_disabled')
    union all
    select format('there is a function %s, and push-listener''s own has that name and those arguments: %s',
                  r.signature, r.way_out)
      from routines r
      join offered o on o.name = r.proname
      where r.types = o.types::oid[]
    union all
    -- PostgREST chooses among functions of one name by the names of the arguments that it is given.
    select format('there is a function %s, and PostgREST could not tell a call of it from one of push-listener''s %s(%s): %s',
                  r.signature, o.name, array_to_string(o.arguments, ', '), r.way_out)
      from routines r
      join offered o on o.name = r.proname
      where r.types <> o.types::oid[] and r.required <@ o.arguments and o.arguments[1:o.required] <@ r.names
    union all
    -- The listener reads the view and calls the function: a role that could make them its own would run code as it.
    select format('%s belongs to %I, which could run code as the listener through it: drop it, or alter %1$s owner to %3$I',
                  o.name, pg_get_userbyid(o.owner), current_user)
      from (
        select 'view public.push_recipients' as name, c.relowner as owner
          from pg_class c where c.oid = to_regclass('public.push_recipients') and c.relkind = 'v'
        union all
        select 'table public.push_recipients', c.relowner
          from pg_class c where c.oid = to_regclass('public.push_recipients') and c.relkind = 'r'
        union all
        select 'function public.push_disable_token(text, text)', p.proowner
          from pg_proc p where p.oid = to_regprocedure('public.push_disable_token(text, text)')
      ) o
      join pg_roles r on r.oid = o.owner
      where not r.rolsuper and not pg_has_role(o.owner, current_user, 'usage')
        and not exists (select from pg_class q where q.oid = queue and pg_has_role(o.owner, q.relowner, 'usage'))
    union all
    select 'push_recipients exists, without the columns user_id uuid, token text and platform text that it has to have: rename it, or give it those'
      where to_regclass('public.push_recipients') is not null
        and 3 <> (
          select count(*)
            from pg_attribute a
            where a.attrelid = to_regclass('public.push_recipients') and not a.attisdropped
              and ((a.attname = 'user_id' and a.atttypid = 'uuid'::regtype)
                   or (a.attname in ('token', 'platform') and a.atttypid = any ('{text,varchar}'::regtype[]))))
  )
  select coalesce(array_agg(line order by line), '{}') into obstacles from obstacle;

  -- Does a CHECK of the application's forbid what push-listener will write? Each is asked, about a row that is there
  -- with such values in it. A CHECK on nothing but a status, priority or platform is widened later.
  for found in
    select k.conname, k.conrelid, c.relname, pg_get_expr(k.conbin, k.conrelid) as condition
      from pg_constraint k
      join pg_class c on c.oid = k.conrelid and c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
        and c.relname in ('push_notifications', 'push_delivery_logs', 'push_devices')
        and pg_has_role(c.relowner, 'usage')
      left join pg_attribute a on a.attrelid = k.conrelid and k.conkey = array[a.attnum]
      where k.contype = 'c' and a.attname in ('status', 'priority', 'platform') is not true
  loop
    refused := '{}';
    for probe in
      select (
          -- What does not fit into a varchar is cut off: that column is widened later, or has been named above.
          select jsonb_object_agg(w.key, case when a.atttypid = 'varchar'::regtype and a.atttypmod <> -1
                                              then to_jsonb("left"(w.value #>> '{}', a.atttypmod - 4)) else w.value end)
            from jsonb_each(unwritten || written) w
            left join pg_attribute a on a.attrelid = found.conrelid and a.attname = w.key)
        from (values
          ('push_notifications',
           '{"claimed_by": null, "retry_count": 0, "delivery_attempts": 0, "last_error": null, "error_code": null,
             "fcm_message_id": null, "sent_at": null, "delivered_at": null, "next_attempt_at": null}'::jsonb,
           '[{"status": "pending", "next_attempt_at": "now"},
             {"status": "processing", "next_attempt_at": "now", "claimed_by": 1, "delivery_attempts": 1},
             {"status": "sent", "sent_at": "now", "delivery_attempts": 1, "fcm_message_id": "projects/x/messages/1"},
             {"status": "delivered", "sent_at": "now", "delivered_at": "now", "delivery_attempts": 1,
              "fcm_message_id": "projects/x/messages/1"},
             {"status": "failed", "next_attempt_at": "now", "retry_count": 4, "delivery_attempts": 100,
              "error_code": "UNAVAILABLE", "last_error": "FCM cannot be reached"},
             {"status": "dead", "retry_count": 5, "delivery_attempts": 100,
              "error_code": "UNREGISTERED", "last_error": "the registration token is no longer valid"},
             {"status": "expired", "error_code": "EXPIRED", "last_error": "expires_at had passed"},
             {"status": "cancelled"}]'::jsonb),
          ('push_delivery_logs',
           '{"push_id": "00000000-0000-4000-8000-000000000000", "details": {}, "created_at": "now"}',
           '[{"status": "sent", "device_token": null}, {"status": "failed", "device_token": "token"},
             {"status": "delivered", "device_token": "token"}, {"status": "opened", "device_token": "token"},
             {"status": "clicked", "device_token": "token"}, {"status": "unknown", "device_token": "token"}]'),
          ('push_devices',
           '{"disabled_at": null, "disabled_reason": null}',
           '[{"platform": "android"}, {"platform": "ios"}, {"platform": "web"},
             {"disabled_at": "now", "disabled_reason": "UNREGISTERED"}]')
        ) as probes(relation, unwritten, writes)
        cross join jsonb_array_elements(writes) as written
        where relation = found.relname
    loop
      -- A function of the application's in a CHECK has the search_path of its sessions; the names in the CHECK, as it is
      -- written here, are read with the search_path of this one.
      execute format(
        'with path as materialized (select set_config(''search_path'', null, true) as of_the_application)
         select %1$s
           from path, jsonb_populate_record(coalesce((select t from public.%2$I t limit 1), null::public.%2$I), $1) as %2$I',
        found.condition, found.relname) into allowed using probe;
      set local search_path = pg_catalog, pg_temp;
      if not allowed then
        refused := refused || coalesce(probe ->> 'status', probe ->> 'platform', 'disabled');
      end if;
    end loop;
    if refused <> '{}' then
      obstacles := obstacles || format(
        'the constraint %I on %I forbids what push-listener writes (%s): drop it, or let that through; it is CHECK (%s)',
        found.conname, found.relname, array_to_string(refused, ', '), found.condition);
    end if;
  end loop;

  if exists (select from pg_attribute where attrelid = queue and attname = 'idempotency_key') then
    execute 'select count(*)
               from (select from public.push_notifications
                       where idempotency_key is not null group by idempotency_key having count(*) > 1) repeated'
      into stale;
    if stale > 0 then
      obstacles := obstacles || format(
        'push_notifications.idempotency_key has %s values that stand in more than one row: leave each in one, and set it to NULL in the others',
        stale);
    end if;
  end if;

  if queue is not null
     and not exists (select from pg_attribute where attrelid = queue and attname = 'status' and not attisdropped) then
    execute 'select exists (select from public.push_notifications)' into allowed;
    if allowed then
      obstacles := obstacles || 'push_notifications has rows, and no column status that says which of them wait: alter table public.push_notifications add column status text not null default ''sent'', and then alter column status set default ''pending'''::text;
    end if;
  end if;

  if obstacles <> '{}' then
    raise exception using
      errcode = 'object_not_in_prerequisite_state',
      message = 'this database cannot be adopted as it is',
      detail = '- ' || array_to_string(obstacles, E'\n- '),
      hint = 'Nothing has been changed. Mend what is named, then run this again.';
  end if;

  -- What is there.
  insert into push_listener.before (kind, relation)
    select 'table', c.relname
      from pg_class c
      where c.relnamespace = 'public'::regnamespace
        and c.relname in ('push_notifications', 'push_delivery_logs', 'push_devices', 'telemetry_logs');
  insert into push_listener.before (kind, relation, name)
    select 'column', b.relation, a.attname
      from push_listener.before b
      join pg_class c on c.relname = b.relation and c.relnamespace = 'public'::regnamespace
      join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      where b.kind = 'table';
  insert into push_listener.before (kind, relation, definition)
    select 'security', b.relation,
           case when not c.relrowsecurity then 'off' when c.relforcerowsecurity then 'forced' else 'on' end
      from push_listener.before b
      join pg_class c on c.relname = b.relation and c.relnamespace = 'public'::regnamespace
      where b.kind = 'table';
  insert into push_listener.before (kind, relation)
    select 'view', 'push_recipients' where to_regclass('public.push_recipients') is not null
    union all
    select 'function', 'push_disable_token' where to_regprocedure('public.push_disable_token(text, text)') is not null;

  -- What of it deserves a look.
  for found in
    select format('row-level security is off on %I: whoever has a grant on it reaches all of its rows', b.relation) as line
      from push_listener.before b
      where b.kind = 'security' and b.definition = 'off'
    union all
    select format('authenticated reads every column of %I that there is, and will read none that push-listener adds. Where the application asks for all columns (select *), it is refused then: let it name the columns, or run push-listener migrate --share-new-columns, which lets users read the new ones, device_token among them, in the rows that the application''s policies show them', b.relation)
      from push_listener.before b
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
      from push_listener.before b
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
        and a.attname not in ('id', 'user_id', 'device_token', 'topic', 'condition', 'title', 'body', 'data', 'channel',
          'priority', 'image', 'options', 'expires_at', 'collapse_key', 'idempotency_key', 'next_attempt_at', 'status',
          'retry_count', 'last_retry_at', 'delivery_attempts', 'last_error', 'error_code', 'fcm_message_id',
          'claimed_by', 'lost_claims', 'sent_at', 'delivered_at', 'created_at', 'updated_at')
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

  if queue is null then
    return;
  end if;

  -- The rows that wait, and since when they are due. 0008 decides about each by these same two expressions.
  select coalesce(min(name), 'null::timestamptz') into due
    from push_listener.before
    where kind = 'column' and relation = 'push_notifications' and name in ('created_at', 'updated_at');
  waits := 'status = ''pending''';
  if exists (select from push_listener.before
               where kind = 'column' and relation = 'push_notifications' and name = 'next_attempt_at') then
    due := format('coalesce(next_attempt_at, %s)', due);
    waits := waits || ' or (status in (''processing'', ''failed'') and next_attempt_at is not null)';
  end if;
  insert into push_listener.before (kind, relation, definition)
    values ('waits', 'push_notifications', waits), ('due', 'push_notifications', due);

  if not exists (select from push_listener.before
                   where kind = 'column' and relation = 'push_notifications' and name = 'status') then
    return; -- nor rows
  end if;
  execute format(
    'select count(*) filter (where waits and due >= $1),
            count(*) filter (where waits and due < $1),
            count(*) filter (where waits and due is null),
            count(*) filter (where not waits)
       from (select %s as waits, %s as due
               from public.push_notifications
               where status in (''pending'', ''processing'') or (%1$s)) p', waits, due)
    into fresh, stale, undated, claimed
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
  if claimed > 0 then
    raise warning 'push_notifications has rows in status ''processing'', in the hands of the application: % of them, which are left to it',
      claimed;
  end if;
end
$preflight$;

-- What the steps after this one do to a table that was there, and how each takes it back --------------------------

create function push_listener.adopted(p_table text) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select exists (select from push_listener.before b where b.kind = 'table' and b.relation = p_table)
$$;

-- Widens what is too narrow. Each change is written down first; none rewrites or scans the table.
create function push_listener.adopt(
  p_table text,
  p_nullable text[] default '{}',  -- columns that push-listener sets to NULL
  p_optional text[] default '{}',  -- columns that may be left out: a default does as well
  p_defaults jsonb default '{}',   -- column: expression, where it has no default
  p_words jsonb default '{}',      -- column: what its CHECK has to let through
  p_lengths jsonb default '{}'     -- column: how many characters it has to hold, null for any number
) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table constant regclass := pg_catalog.format('public.%I', p_table)::regclass;
  v_narrow boolean;
  found record;
begin
  if not push_listener.adopted(p_table) then
    return;
  end if;

  for found in
    select k.conname, a.attname, pg_catalog.pg_get_constraintdef(k.oid) as definition,
           pg_catalog.pg_get_expr(k.conbin, k.conrelid) as condition,
           array(select pg_catalog.jsonb_array_elements_text(p_words -> a.attname::text)) as words
      from pg_catalog.pg_constraint k
      join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
      where k.conrelid = v_table and k.contype = 'c' and pg_catalog.cardinality(k.conkey) = 1
        and p_words ? a.attname::text
  loop
    execute pg_catalog.format('select pg_catalog.bool_or(not (%s)) from (select w as %I from pg_catalog.unnest($1) w) as %I',
                              found.condition, found.attname, p_table)
      into v_narrow using found.words;
    if v_narrow then
      insert into push_listener.before (kind, relation, name, definition)
        values ('check', p_table, found.conname, found.definition);
      -- Not valid yet: to look at every row takes time, and 0008 does it under a lock that is in nobody's way.
      execute pg_catalog.format(
        'alter table %s drop constraint %I, add constraint %2$I check ((%s) or %I = any (%L::text[])) not valid',
        v_table, found.conname, found.condition, found.attname, found.words);
    end if;
  end loop;

  for found in
    select a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) as type
      from pg_catalog.pg_attribute a
      where a.attrelid = v_table and p_lengths ? a.attname::text
        and a.atttypid = 'varchar'::regtype and a.atttypmod <> -1
        and (a.atttypmod - 4 < (p_lengths ->> a.attname::text)::integer) is not false
  loop
    insert into push_listener.before (kind, relation, name, definition)
      values ('type', p_table, found.attname, found.type);
    execute pg_catalog.format('alter table %s alter column %I type text', v_table, found.attname);
  end loop;

  for found in
    select a.attname, k.conname
      from pg_catalog.pg_attribute a
      -- Since PostgreSQL 18 a NOT NULL is a constraint with a name.
      left join pg_catalog.pg_constraint k on k.conrelid = a.attrelid and k.contype = 'n' and k.conkey = array[a.attnum]
      where a.attrelid = v_table and a.attnotnull and not a.attisdropped
        and (a.attname = any (p_nullable) or (a.attname = any (p_optional) and not a.atthasdef))
  loop
    insert into push_listener.before (kind, relation, name, definition)
      values ('required', p_table, found.attname, found.conname);
    execute pg_catalog.format('alter table %s alter column %I drop not null', v_table, found.attname);
  end loop;

  for found in
    select a.attname, p_defaults ->> a.attname::text as expression
      from pg_catalog.pg_attribute a
      where a.attrelid = v_table and p_defaults ? a.attname::text and not a.atthasdef and a.attidentity = ''
        and not (a.attname = 'id' and a.atttypid <> 'uuid'::regtype)
  loop
    insert into push_listener.before (kind, relation, name) values ('default', p_table, found.attname);
    execute pg_catalog.format('alter table %s alter column %I set default %s', v_table, found.attname, found.expression);
  end loop;
end
$$;

-- Sets storage parameters, except those that the application has set.
create function push_listener.tune(p_table text, p_storage jsonb) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table constant regclass := pg_catalog.format('public.%I', p_table)::regclass;
  found record;
begin
  for found in
    select s.key, s.value
      from pg_catalog.jsonb_each_text(p_storage) s
      where not exists (
        select from pg_catalog.pg_class c, pg_catalog.pg_options_to_table(c.reloptions) o
          where c.oid = v_table and o.option_name = s.key)
  loop
    insert into push_listener.before (kind, relation, name) values ('storage', p_table, found.key);
    execute pg_catalog.format('alter table %s set (%I = %s)', v_table, found.key, found.value);
  end loop;
end
$$;

-- What the way back of a table would lose, in words; nothing if all of it can be had again.
create function push_listener.losses(p_table text) returns setof text
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table constant regclass := pg_catalog.format('public.%I', p_table)::regclass;
  v_count bigint;
  found record;
begin
  if not push_listener.adopted(p_table) then
    execute pg_catalog.format('select count(*) from (select from %s limit 1) one', v_table) into v_count;
    if v_count > 0 then
      return next pg_catalog.format('%I was made by push-listener and holds rows', p_table);
    end if;
    return;
  end if;
  -- Columns that give_back() cannot fill in.
  for found in
    select b.name
      from push_listener.before b
      join pg_catalog.pg_attribute a on a.attrelid = v_table and a.attname = b.name
      join pg_catalog.pg_type t on t.oid = a.atttypid
      where b.kind = 'required' and b.relation = p_table and t.typcategory not in ('S', 'N', 'D')
        and (not a.atthasdef or exists (
          select from push_listener.before d
            join push_listener.before c on c.kind = 'column' and c.relation = p_table and c.name = d.name
            where d.kind = 'default' and d.relation = p_table and d.name = b.name))
      order by a.attnum
  loop
    execute pg_catalog.format('select count(*) from %s where %I is null', v_table, found.name) into v_count;
    if v_count > 0 then
      return next pg_catalog.format('%I has %s rows without %I, which the application requires', p_table, v_count, found.name);
    end if;
  end loop;
end
$$;

-- The way back of one table. One that push-listener made goes if it is empty; one that was there becomes what it was.
-- What the old shape cannot hold is not thrown away, unless "push-listener migrate --down ... --discard-data" says so.
-- Triggers of the application's on rows that are changed or deleted run with the search_path of its own sessions.
create function push_listener.give_back(p_table text, p_columns text[]) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table constant regclass := pg_catalog.format('public.%I', p_table)::regclass;
  v_discard constant boolean := pg_catalog.current_setting('push_listener.discard_data', true) is not distinct from 'on';
  v_path constant text :=
    'with path as materialized (select set_config(''search_path'', null, true) as of_the_application) ';
  v_changes text;
  v_fill text;
  v_loss text;
  found record;
begin
  if not v_discard then
    select pg_catalog.string_agg(loss, '; ') into v_loss from push_listener.losses(p_table) loss;
    if v_loss is not null then
      raise exception using errcode = 'object_not_in_prerequisite_state', message = v_loss,
        hint = 'This step has changed nothing. Complete or save those rows, then roll back with --discard-data, which deletes them.';
    end if;
  end if;
  if not push_listener.adopted(p_table) then
    execute pg_catalog.format('drop table %s', v_table);
    delete from push_listener.before where relation = p_table;
    return;
  end if;

  select pg_catalog.string_agg(change, ', ' order by place) into v_changes
    from (
      select 1, pg_catalog.format('drop constraint if exists %I', b.name)
        from push_listener.before b
        where b.kind = 'check' and b.relation = p_table
      union all
      select 2, pg_catalog.format('drop column %I', a.attname)
        from pg_catalog.pg_attribute a
        where a.attrelid = v_table and a.attnum > 0 and not a.attisdropped and a.attname = any (p_columns)
          and not exists (
            select from push_listener.before b
              where b.kind = 'column' and b.relation = p_table and b.name = a.attname)
      union all
      select 3, pg_catalog.format('alter column %I type %s using %1$I::%2$s', b.name, b.definition)
        from push_listener.before b
        where b.kind = 'type' and b.relation = p_table
      union all
      select 4, pg_catalog.format('alter column %I drop default', b.name)
        from push_listener.before b
        join push_listener.before c on c.kind = 'column' and c.relation = p_table and c.name = b.name
        where b.kind = 'default' and b.relation = p_table
      union all
      select 5, pg_catalog.format('reset (%I)', b.name)
        from push_listener.before b
        where b.kind = 'storage' and b.relation = p_table
      union all
      select 6, case b.definition when 'off' then 'disable row level security, no force row level security'
                  when 'on' then 'enable row level security, no force row level security'
                  else 'enable row level security, force row level security' end
        from push_listener.before b
        where b.kind = 'security' and b.relation = p_table
    ) as t(place, change);
  execute pg_catalog.format('alter table %s %s', v_table, v_changes);

  for found in
    select b.name, b.definition, pg_catalog.pg_get_expr(d.adbin, d.adrelid) as value, t.typcategory
      from push_listener.before b
      join pg_catalog.pg_attribute a on a.attrelid = v_table and a.attname = b.name
      join pg_catalog.pg_type t on t.oid = a.atttypid
      left join pg_catalog.pg_attrdef d on d.adrelid = v_table and d.adnum = a.attnum
      where b.kind = 'required' and b.relation = p_table
  loop
    v_fill := coalesce(found.value, case found.typcategory when 'S' then '''''' when 'N' then '0' when 'D' then 'now()' end);
    if v_fill is not null then
      execute v_path || pg_catalog.format('update %s t set %I = %s from path where t.%2$I is null',
                                          v_table, found.name, v_fill);
    elsif v_discard then
      execute v_path || pg_catalog.format('delete from %s t using path where t.%I is null', v_table, found.name);
    end if;
    set constraints all immediate; -- a table with triggers to come cannot be changed
    set local search_path = pg_catalog, pg_temp;
    execute pg_catalog.format(
      case when found.definition is null then 'alter table %s alter column %I set not null'
           else 'alter table %s add constraint %3$I not null %2$I' end, v_table, found.name, found.definition);
  end loop;

  for found in
    select b.name,
           -- Postgres reads its own writing of a list of varchar otherwise than it was meant, but for this.
           pg_catalog.regexp_replace(b.definition, '\(ARRAY\[([^]]*::character varying)\]\)::text\[\]',
                                     '((ARRAY[\1])::character varying[])::text[]', 'g') as definition,
           "substring"(b.definition, '^CHECK \((.*)\)(?: NO INHERIT| NOT VALID| NOT ENFORCED)*$') as condition
      from push_listener.before b
      where b.kind = 'check' and b.relation = p_table
  loop
    if v_discard then
      execute v_path || pg_catalog.format('delete from %s using path where not (%s)', v_table, found.condition);
      set constraints all immediate;
      set local search_path = pg_catalog, pg_temp;
    end if;
    begin
      execute pg_catalog.format('alter table %s add constraint %I %s', v_table, found.name, found.definition);
    exception when check_violation then
      execute pg_catalog.format('alter table %s add constraint %I %s not valid', v_table, found.name, found.definition);
      raise warning '%', pg_catalog.format('%I is back on %I for new rows only: it has rows that would break it',
                                           found.name, p_table);
    end;
  end loop;
  delete from push_listener.before
    where relation = p_table and kind in ('check', 'required', 'type', 'default', 'storage');
end
$$;

revoke all on function push_listener.adopted(text), push_listener.tune(text, jsonb),
  push_listener.losses(text), push_listener.give_back(text, text[]),
  push_listener.adopt(text, text[], text[], jsonb, jsonb, jsonb) from public;
