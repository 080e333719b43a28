-- Looks before anything is changed. What push-listener cannot adopt stops the migration here, and the error names all
-- of it at once. This file leaves nothing behind but the schema push_listener and the function columns().
--
-- push_listener is the schema of this project. PostgREST does not expose it, and applications have no use for it.

\ir ../functions/push_listener/columns.sql

create table push_listener.preflight_obstacles (
  place integer not null,
  line text not null
);

-- What push-listener expects ---------------------------------------------------------------------------------------

-- The types that a column may have. The tables step adds a column that is missing.
create view push_listener.preflight_wanted(relation, name, types) as
  values
    ('push_notifications', 'id', '{uuid}'::regtype[]),
    ('push_notifications', 'user_id', '{uuid}'),
    ('push_notifications', 'device_token', '{text,varchar}'),
    ('push_notifications', 'fid', '{text,varchar}'),
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
    ('push_notifications', 'push_first_due_at', '{timestamptz}'),
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
    ('telemetry_logs', 'created_at', '{timestamptz}');

-- How many characters push-listener writes; null for any number. A varchar that is shorter is widened, which rewrites
-- nothing.
create view push_listener.preflight_written(relation, name, length) as
  values
    ('push_notifications', 'status', 10),
    ('push_notifications', 'last_error', null),
    ('push_notifications', 'error_code', null),
    ('push_notifications', 'fcm_message_id', null),
    ('push_delivery_logs', 'status', 9),
    ('push_delivery_logs', 'device_token', 4096),
    ('push_devices', 'token', 4096),
    ('push_devices', 'platform', 7),
    ('push_devices', 'disabled_reason', null);

-- The functions of schema public: their arguments, the types of these, and how many are required.
create view push_listener.preflight_offered(name, arguments, types, required) as
  values
    ('fetch_pending_pushes', '{p_limit}'::text[], '{int4}'::regtype[], 0),
    ('mark_push_sent', '{p_push_id}', '{uuid}', 1),
    ('mark_push_failed', '{p_push_id,p_error}', '{uuid,text}', 1),
    ('record_delivery_receipt', '{p_push_id,p_device_token,p_status,p_details,p_at}', '{uuid,text,text,jsonb,timestamptz}', 3),
    ('record_delivery_receipts', '{p_receipts}', '{jsonb[]}', 1),
    ('flush_telemetry', '{p_payloads,p_batch_id}', '{jsonb[],uuid}', 1),
    ('get_push', '{p_push_id}', '{uuid}', 1),
    ('get_push_delivery_stats', '{p_days}', '{int4}', 0),
    ('enqueue_push',
     '{p_user_id,p_device_token,p_topic,p_condition,p_title,p_body,p_data,p_channel,p_priority,p_image,p_options,p_collapse_key,p_idempotency_key,p_expires_at,p_send_at,p_fid}',
     '{uuid,text,text,text,text,text,jsonb,text,text,text,jsonb,text,text,timestamptz,timestamptz,text}', 0),
    ('enqueue_pushes', '{p_pushes}', '{jsonb[]}', 1),
    ('register_device', '{p_token,p_platform,p_user_id}', '{text,text,uuid}', 2),
    ('unregister_device', '{p_token}', '{text}', 1),
    ('cancel_push', '{p_push_id}', '{uuid}', 1),
    ('push_is_service', '{p_role}', '{name}', 1),
    ('requeue_pushes', '{p_ids,p_error_code,p_since,p_limit,p_status,p_user_id,p_until}',
     '{uuid[],text,timestamptz,int4,text,uuid,timestamptz}', 0);

-- What is there ----------------------------------------------------------------------------------------------------

create view push_listener.preflight_relations as
  select c.oid, c.relname, c.relkind, c.relowner, c.relforcerowsecurity, c.relhasrules, c.relhassubclass, c.reloftype
    from pg_class c
    where c.relnamespace = 'public'::regnamespace
      and c.relname in ('push_notifications', 'push_delivery_logs', 'push_devices', 'telemetry_logs');

create view push_listener.preflight_tables as
  select * from push_listener.preflight_relations where relkind = 'r';

create view push_listener.preflight_columns as
  select a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.atthasdef, a.attidentity, a.attgenerated,
         t.relname, format('%I.%I', t.relname, a.attname) as name, format_type(a.atttypid, a.atttypmod) as type,
         format('alter table public.%I alter column %I', t.relname, a.attname) as alter
    from push_listener.preflight_tables t
    join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped;

create view push_listener.preflight_short as
  select c.*
    from push_listener.preflight_columns c
    join push_listener.preflight_written w on w.relation = c.relname and w.name = c.attname
    where c.atttypid = 'varchar'::regtype and c.atttypmod <> -1 and (c.atttypmod - 4 < w.length) is not false;

create view push_listener.preflight_unique_keys as
  select t.oid, t.relname, i.indexrelid, i.indpred is null and i.indisvalid as whole, k.names
    from push_listener.preflight_tables t
    join pg_index i on i.indrelid = t.oid and i.indisunique
    cross join lateral (
      -- NULL stands for an expression.
      select array_agg(a.attname::text) as names
        from generate_series(0, i.indnkeyatts - 1) n
        left join pg_attribute a on a.attrelid = t.oid and a.attnum = i.indkey[n] and a.attnum > 0
    ) k;

create view push_listener.preflight_routines as
  select p.proname, p.oid::regprocedure as signature, array(select unnest(p.proargtypes)) as types, i.names,
         coalesce(i.names[1:p.pronargs - p.pronargdefaults], '{}') as required,
         -- Renamed, it can do more than before, with the new columns. So the advice revokes execute first.
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
    where p.pronamespace = 'public'::regnamespace;

-- What stands in the way: the server and the role ------------------------------------------------------------------

insert into push_listener.preflight_obstacles
select 1, o.line from (
  select format('this is PostgreSQL %s, and 15 is the oldest that will do', current_setting('server_version'))
    where current_setting('server_version_num')::integer < 150000
  union all
  select format('%1$I may not create anything in the schema public: let its owner grant create on schema public to %1$I',
                current_user)
    where not has_schema_privilege('public', 'create')
  union all
  select format('%I belongs to %I, of which %I is not a member: run this as %2$I',
                r.relname, pg_get_userbyid(r.relowner), current_user)
    from push_listener.preflight_relations r
    where not pg_has_role(r.relowner, 'usage')
  -- Triggers and defaults that the owner of a table or schema creates run with the rights of push-listener's
  -- functions, which are those of this role. A superuser or the owner of the database could do the same without them.
  union all
  select format('%1$s belongs to %2$I, whose triggers and defaults would run with the rights of %3$I, which are more: run this as %2$I, or let %3$I own it (alter %1$s owner to %3$I); if %2$I has no business there, drop it first',
                o.name, r.rolname, current_user)
    from (
      select format('table public.%I', t.relname) as name, t.relowner as owner
        from push_listener.preflight_tables t where pg_has_role(t.relowner, 'usage')
      union all
      select 'schema push_listener', n.nspowner from pg_namespace n where n.nspname = 'push_listener'
    ) o
    join pg_roles r on r.oid = o.owner
    join pg_database d on d.datname = current_database()
    where not (r.rolsuper or r.oid = d.datdba or pg_has_role(r.oid, current_user, 'usage'))
  union all
  select format('%1$I forces row-level security on its owner, and %2$I without BYPASSRLS does not see all of its rows: run this as a role that does, or alter table public.%1$I no force row level security',
                t.relname, current_user)
    from push_listener.preflight_tables t
    where t.relforcerowsecurity and not (select rolsuper or rolbypassrls from pg_roles where rolname = current_user)
) as o(line);

-- The tables -------------------------------------------------------------------------------------------------------

insert into push_listener.preflight_obstacles
select 1, o.line from (
  select format('%I is %s, and has to be an ordinary table: rename it', r.relname,
                case r.relkind when 'v' then 'a view' when 'm' then 'a materialized view' when 'f' then 'a foreign table'
                  when 'p' then 'a partitioned table' when 'i' then 'an index' when 'S' then 'a sequence'
                  else 'no table' end)
    from push_listener.preflight_relations r
    where r.relkind <> 'r'
  union all
  select format('%I %s, and push-listener cannot work with it so', t.relname,
                case when t.reloftype <> 0 then 'is made of a type' when t.relhasrules then 'has rewrite rules'
                  else 'inherits or is inherited from' end)
    from push_listener.preflight_tables t
    where t.reloftype <> 0 or t.relhasrules or t.relhassubclass
      or exists (select from pg_inherits i where i.inhrelid = t.oid)
  union all
  select format('%I has no column %I: add it, or rename the table', t.relname, key.name)
    from push_listener.preflight_tables t
    join (values ('push_notifications', 'id'), ('push_devices', 'token')) as key(relation, name) on key.relation = t.relname
    where not exists (select from push_listener.preflight_columns c where c.attrelid = t.oid and c.attname = key.name)
  union all
  select format('%s has no primary key or unique constraint for it alone: alter table public.%I add unique (%I)',
                c.name, c.relname, c.attname)
    from push_listener.preflight_columns c
    join (values ('push_notifications', 'id'), ('push_devices', 'token')) as key(relation, name)
      on key.relation = c.relname and key.name = c.attname
    where not exists (select from push_listener.preflight_unique_keys u where u.oid = c.attrelid and u.whole and u.names = array[key.name])
) as o(line);

-- The columns ------------------------------------------------------------------------------------------------------

insert into push_listener.preflight_obstacles
select 1, o.line from (
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
    from push_listener.preflight_columns c
    join push_listener.preflight_wanted w on w.relation = c.relname and w.name = c.attname
    join pg_type t on t.oid = c.atttypid
    left join pg_attrdef d on d.adrelid = c.attrelid and d.adnum = c.attnum
    where c.atttypid <> all (w.types)
  union all
  select format('%s is generated, and has to be written: %s drop expression', c.name, c.alter)
    from push_listener.preflight_columns c
    join push_listener.preflight_wanted w on w.relation = c.relname and w.name = c.attname
    where c.attgenerated <> ''
  union all
  select format('%s is %s, too short for what push-listener writes, and cannot be widened while there is %s: drop that, %s type text, and create it again',
                s.name, s.type, string_agg(distinct user_of.it, ', '), s.alter)
    from push_listener.preflight_short s
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
    from push_listener.preflight_columns c
    where c.relname in ('push_delivery_logs', 'push_devices', 'telemetry_logs')
      and c.attnotnull and not c.atthasdef and c.attidentity = ''
      and not exists (select from push_listener.preflight_wanted w where w.relation = c.relname and w.name = c.attname)
      and not (c.attname = 'id' and c.atttypid = 'uuid'::regtype) -- which is given one
  union all
  select format('the unique index %s lets a push have only one row for each %s, and there is one for each attempt and each receipt: drop it',
                u.indexrelid::regclass, array_to_string(u.names, ', '))
    from push_listener.preflight_unique_keys u
    where u.relname = 'push_delivery_logs' and u.names <@ '{push_id,device_token,status}'
) as o(line);

-- Names that push-listener's own objects will have -----------------------------------------------------------------

insert into push_listener.preflight_obstacles
select 1, o.line from (
  select format('there is a trigger %I on %I, named as push-listener names its own: alter trigger %1$I on public.%2$I rename to ...',
                g.tgname, t.relname)
    from push_listener.preflight_tables t
    join pg_trigger g on g.tgrelid = t.oid and not g.tgisinternal and g.tgname like 'push\_listener\_%'
  union all
  select format('there is %s %I, named as an index that push-listener makes: rename it',
                case c.relkind when 'i' then 'an index' when 'r' then 'a table' else 'a relation' end, c.relname)
    from pg_class c
    where c.relnamespace = 'public'::regnamespace
      and c.relname in (
        'push_notifications_due', 'push_notifications_idempotency', 'push_notifications_given_up',
        'push_notifications_over', 'push_notifications_user', 'push_notifications_code', 'push_delivery_logs_push',
        'push_devices_live', 'push_devices_disabled')
  union all
  select format('there is a function %s, and push-listener''s own has that name and those arguments: %s',
                r.signature, r.way_out)
    from push_listener.preflight_routines r
    join push_listener.preflight_offered o on o.name = r.proname
    where r.types = o.types::oid[]
  union all
  -- PostgREST chooses among functions of one name by the names of the arguments of the call.
  select format('there is a function %s, and PostgREST could not tell a call of it from one of push-listener''s %s(%s): %s',
                r.signature, o.name, array_to_string(o.arguments, ', '), r.way_out)
    from push_listener.preflight_routines r
    join push_listener.preflight_offered o on o.name = r.proname
    where r.types <> o.types::oid[] and r.required <@ o.arguments and o.arguments[1:o.required] <@ r.names
  union all
  -- The listener reads the view and calls the function, so their owner can run code as the listener.
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
      and not exists (
        select from pg_class q where q.oid = to_regclass('public.push_notifications')
          and q.relkind = 'r' and pg_has_role(q.relowner, 'usage') and pg_has_role(o.owner, q.relowner, 'usage'))
  union all
  select 'push_recipients exists, without the columns user_id uuid, token text and platform text that it has to have: rename it, or give it those'
    where to_regclass('public.push_recipients') is not null
      and 3 <> (
        select count(*)
          from pg_attribute a
          where a.attrelid = to_regclass('public.push_recipients') and not a.attisdropped
            and ((a.attname = 'user_id' and a.atttypid = 'uuid'::regtype)
                 or (a.attname in ('token', 'platform') and a.atttypid = any ('{text,varchar}'::regtype[]))))
) as o(line);

-- CHECK constraints ------------------------------------------------------------------------------------------------

-- Values that push-listener writes together: what a row has before (unwritten), and what is written into it.
create view push_listener.preflight_probes(relation, unwritten, writes) as
  values
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
       {"disabled_at": "now", "disabled_reason": "UNREGISTERED"}]');

-- Does a CHECK of the application forbid what push-listener will write? Each is evaluated for a row of the table with
-- such values in it. A CHECK on nothing but a status, priority or platform is widened later.
do $$
declare
  found record;
  probe jsonb;
  allowed boolean;
  refused text[];
begin
  for found in
    select k.conname, k.conrelid, t.relname, pg_get_expr(k.conbin, k.conrelid) as condition
      from push_listener.preflight_tables t
      join pg_constraint k on k.conrelid = t.oid and k.contype = 'c'
      left join pg_attribute a on a.attrelid = k.conrelid and k.conkey = array[a.attnum]
      where t.relname <> 'telemetry_logs' and pg_has_role(t.relowner, 'usage')
        and a.attname in ('status', 'priority', 'platform') is not true
  loop
    refused := '{}';
    for probe in
      select (
          -- A value too long for a varchar is cut off: that column is widened later, or named above.
          select jsonb_object_agg(w.key, case when a.atttypid = 'varchar'::regtype and a.atttypmod <> -1
                                              then to_jsonb("left"(w.value #>> '{}', a.atttypmod - 4)) else w.value end)
            from jsonb_each(p.unwritten || written) w
            left join pg_attribute a on a.attrelid = found.conrelid and a.attname = w.key)
        from push_listener.preflight_probes p
        cross join jsonb_array_elements(p.writes) as written
        where p.relation = found.relname
    loop
      -- A function of the application in a CHECK gets the search_path of the application's sessions. The names in the
      -- CHECK itself are resolved before that, with the search_path of this session.
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
      insert into push_listener.preflight_obstacles values (2, format(
        'the constraint %I on %I forbids what push-listener writes (%s): drop it, or let that through; it is CHECK (%s)',
        found.conname, found.relname, array_to_string(refused, ', '), found.condition));
    end if;
  end loop;
end
$$;

-- The rows ---------------------------------------------------------------------------------------------------------

-- EXECUTE, because a statement that names a table or column that does not exist would fail.
do $$
declare
  queue constant regclass := (
    select oid from push_listener.preflight_tables
      where relname = 'push_notifications' and pg_has_role(relowner, 'usage'));
  repeated bigint;
  has_rows boolean;
begin
  if exists (select from pg_attribute where attrelid = queue and attname = 'idempotency_key') then
    execute 'select count(*)
               from (select from public.push_notifications
                       where idempotency_key is not null group by idempotency_key having count(*) > 1) repeated'
      into repeated;
    if repeated > 0 then
      insert into push_listener.preflight_obstacles values (3, format(
        'push_notifications.idempotency_key has %s values that stand in more than one row: leave each in one, and set it to NULL in the others',
        repeated));
    end if;
  end if;

  if queue is not null
     and not exists (select from pg_attribute where attrelid = queue and attname = 'status' and not attisdropped) then
    execute 'select exists (select from public.push_notifications)' into has_rows;
    if has_rows then
      insert into push_listener.preflight_obstacles values (4,
        'push_notifications has rows, and no column status that says which of them wait: alter table public.push_notifications add column status text not null default ''sent'', and then alter column status set default ''pending''');
    end if;
  end if;
end
$$;

-- The end of it ----------------------------------------------------------------------------------------------------

do $$
declare
  obstacles constant text := (select string_agg('- ' || line, E'\n' order by place, line)
                                from push_listener.preflight_obstacles);
begin
  if obstacles is not null then
    raise exception using
      errcode = 'object_not_in_prerequisite_state',
      message = 'this database cannot be adopted as it is',
      detail = obstacles,
      hint = 'Nothing has been changed. Mend what is named, then run this again.';
  end if;
end
$$;

drop view push_listener.preflight_probes, push_listener.preflight_routines, push_listener.preflight_unique_keys,
  push_listener.preflight_short, push_listener.preflight_columns, push_listener.preflight_tables,
  push_listener.preflight_relations, push_listener.preflight_offered, push_listener.preflight_written,
  push_listener.preflight_wanted;
drop table push_listener.preflight_obstacles;
