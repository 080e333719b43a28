-- Who can cause, change or read a push in this database: every role, and every way that the catalogue shows.
--
-- Superusers and the owner of the queue, who may do everything, are left out, and so are the roles that come with
-- Postgres. A function counts if its text names one of the tables, a view of one, or another function that counts. So
-- does a function that a trigger of another table runs. SQL that a function builds from strings at run time cannot be
-- seen.
--
-- Names are searched for in lower case and without quotes. They are searched for literally, because anybody who may
-- create a function chooses its name, and the name may look like a regular expression.

with recursive queue as (
  select c.oid, c.relowner from pg_catalog.pg_class c
    where c.oid = pg_catalog.to_regclass('public.push_notifications')
), ours(name, about) as (
  values ('push_notifications', 'pushes'), ('push_delivery_logs', 'log rows'), ('push_devices', 'registration tokens')
), tables as (
  select c.oid, c.relname::text as name, c.oid::regclass::text as shown, c.relowner, c.relrowsecurity, o.about
    from ours o
    join pg_catalog.pg_class c on c.relname = o.name and c.relnamespace = 'public'::pg_catalog.regnamespace
      and c.relkind in ('r', 'p')
  union
  -- The tables where the application keeps its tokens: those that the view push_recipients reads.
  select c.oid, c.relname, c.oid::regclass::text, c.relowner, c.relrowsecurity, 'registration tokens'
    from pg_catalog.pg_rewrite w
    join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::regclass and d.objid = w.oid
      and d.refclassid = 'pg_catalog.pg_class'::regclass
    join pg_catalog.pg_class c on c.oid = d.refobjid and c.relkind in ('r', 'p')
    where w.ev_class = pg_catalog.to_regclass('public.push_recipients')
      and c.relname not in (select name from ours)
), roles as (
  select r.oid, r.rolname::text as name, r.rolbypassrls,
         -- Users are never meant to be services, whatever roles they are members of.
         r.rolname not in ('anon', 'authenticated')
           and exists (select from pg_catalog.pg_roles s
                         where s.rolname in ('service_role', 'push_listener', 'push_listener_operator') and pg_catalog.pg_has_role(r.oid, s.oid, 'usage'))
           as is_service
    from pg_catalog.pg_roles r, queue q
    where not r.rolsuper and not pg_catalog.pg_has_role(r.oid, q.relowner, 'usage')
      and not pg_catalog.starts_with(r.rolname, 'pg_')
), views as (
  -- Views. Row-level security does not restrict a view that reads with the rights of its owner.
  select v.oid, v.oid::regclass::text as shown, v.relname::text as name, v.relkind, t.name as of_table, t.about,
         not coalesce(v.reloptions, '{}')::text[]
               && '{security_invoker=true,security_invoker=on,security_invoker=1,security_invoker=yes}'::text[] as as_owner
    from tables t
    join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = t.oid
      and d.classid = 'pg_catalog.pg_rewrite'::regclass
    join pg_catalog.pg_rewrite w on w.oid = d.objid
    join pg_catalog.pg_class v on v.oid = w.ev_class and v.relkind in ('v', 'm')
    where v.oid is distinct from pg_catalog.to_regclass('push_listener.ended')
  union
  -- Postgres checks the rights of the current user for a security_invoker view, also if another view reads it.
  select v.oid, v.oid::regclass::text, v.relname::text, v.relkind, u.of_table, u.about,
         v.relkind = 'm' or u.as_owner and not coalesce(v.reloptions, '{}')::text[]
               && '{security_invoker=true,security_invoker=on,security_invoker=1,security_invoker=yes}'::text[]
    from views u
    join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = u.oid
      and d.classid = 'pg_catalog.pg_rewrite'::regclass
    join pg_catalog.pg_rewrite w on w.oid = d.objid
    join pg_catalog.pg_class v on v.oid = w.ev_class and v.relkind in ('v', 'm') and v.oid <> u.oid
), routines as materialized (
  select p.oid, p.oid::regprocedure::text as shown, p.proname::text as name, p.prosecdef, p.proowner, p.pronamespace,
         p.prorettype = 'pg_catalog.trigger'::regtype as is_trigger,
         p.prokind = 'p' as is_procedure,
         pg_catalog.replace(pg_catalog.lower(n.source), '"', '') as source,
         pg_catalog.replace(pg_catalog.lower(p.proname), '"', '') as plain,
         n.pattern
    from pg_catalog.pg_proc p
    join pg_catalog.pg_namespace s on s.oid = p.pronamespace and s.nspname not in ('pg_catalog', 'information_schema', 'push_listener')
      and not pg_catalog.starts_with(s.nspname, 'pg_')
    cross join lateral (
      select coalesce(case when p.prosqlbody is null then p.prosrc else pg_catalog.pg_get_functiondef(p.oid) end, '') as source,
             pg_catalog.regexp_replace(pg_catalog.replace(pg_catalog.lower(p.proname), '"', ''), '(\W)', '\\\1', 'g') as pattern
    ) n
    where p.prokind in ('f', 'p')
      and not exists (select from pg_catalog.pg_depend d
                        where d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
), names as (
  select n.plain, n.of_table, n.about, pg_catalog.regexp_replace(n.plain, '(\W)', '\\\1', 'g') as pattern
    from (
      select pg_catalog.replace(pg_catalog.lower(name), '"', '') as plain, name as of_table, about from tables
      union
      select pg_catalog.replace(pg_catalog.lower(name), '"', ''), of_table, about from views
      union
      select 'push_recipients', 'push_recipients', 'registration tokens'
    ) n
), touching as (
  -- What a function does with a table, by itself or through the functions that it calls. The patterns allow a comment
  -- wherever a space may be.
  select r.oid, r.plain, r.pattern, n.of_table, n.about,
         r.source ~ '\mexecute\M'
           or r.source ~ ('\m(insert|merge)' || g.gap || '+into' || g.gap || '+(\w+' || g.gap || '*\.' || g.gap || '*)?' || n.pattern || '(?!\w)')
           as inserts,
         r.source ~ '\mexecute\M'
           or r.source ~ ('\m(update|delete' || g.gap || '+from|merge' || g.gap || '+into|truncate(' || g.gap || '+table)?)' || g.gap
                          || '+(only' || g.gap || '+)?(\w+' || g.gap || '*\.' || g.gap || '*)?' || n.pattern || '(?!\w)') as changes
    from names n
    join routines r on pg_catalog.strpos(r.source, n.plain) > 0 and r.source ~ ('(?<!\w)' || n.pattern || '(?!\w)')
    cross join (values ('(\s|/\*.*?\*/|--[^\n]*\n)')) as g(gap)
  union
  select r.oid, r.plain, r.pattern, c.of_table, c.about, c.inserts, c.changes
    from touching c
    join routines r on r.oid <> c.oid and pg_catalog.strpos(r.source, c.plain) > 0
      and r.source ~ ('(?<!\w)' || c.pattern || '(\s|/\*.*?\*/|--[^\n]*\n)*\(')
), effects as (
  select r.*, t.of_table, t.about, pg_catalog.bool_or(t.inserts) as inserts, pg_catalog.bool_or(t.changes) as changes
    from touching t
    join routines r on r.oid = t.oid
    group by r.oid, r.shown, r.name, r.prosecdef, r.proowner, r.pronamespace, r.is_trigger, r.is_procedure, r.source,
             r.plain, r.pattern, t.of_table, t.about
), ours_functions as (
  -- push-listener's own functions check by themselves who calls them, whatever has been granted.
  select p.oid from pg_catalog.pg_proc p
    where p.oid = any (array(select pg_catalog.to_regprocedure(f.name) from pg_catalog.unnest(%(ours)s::text[]) f(name)))
), ways as (
  -- A privilege on a table, with row-level security off, bypassed, or opened by a policy.
  select case when t.name = 'push_notifications' and p.privilege = 'insert' then 'cause'
              when p.privilege = 'select' then 'read' else 'change' end as effect,
         t.about, r.name as role, r.is_service, p.privilege, t.shown as object,
         case when p.privilege in ('truncate', 'trigger') then 'no row-level security' when not t.relrowsecurity then 'row-level security off'
              when r.rolbypassrls then 'the role bypasses row-level security'
              else pg_catalog.format('policy "%%s"', pol.polname) end as by,
         pol.polname is not null and pg_catalog.starts_with(pol.polname, 'push_listener_') as is_ours,
         case when pol.polname is not null then coalesce(
           pg_catalog.pg_get_expr(coalesce(pol.polwithcheck, pol.polqual), pol.polrelid), 'true') end as condition,
         pol.polname::text as policy
    from tables t
    cross join (values ('select', 'r'), ('insert', 'a'), ('update', 'w'), ('delete', 'd'), ('truncate', null), ('trigger', null))
      p(privilege, command)
    join roles r on case when p.privilege in ('delete', 'truncate', 'trigger') then pg_catalog.has_table_privilege(r.oid, t.oid, p.privilege)
                         when p.privilege = 'update' and t.about <> 'registration tokens' then exists (
                           -- push-listener does not depend on the application's own columns.
                           select from pg_catalog.pg_attribute a
                             where a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
                               and a.attname = any ('{user_id,device_token,fid,topic,condition,title,body,data,channel,priority,image,
                                 options,expires_at,collapse_key,idempotency_key,next_attempt_at,status,retry_count,
                                 last_retry_at,delivery_attempts,last_error,error_code,fcm_message_id,claimed_by,lost_claims,
                                 push_first_due_at,sent_at,delivered_at,created_at,updated_at,id,push_id,details}'::name[])
                               and pg_catalog.has_column_privilege(r.oid, t.oid, a.attnum, 'update'))
                         else pg_catalog.has_any_column_privilege(r.oid, t.oid, p.privilege) end
    left join pg_catalog.pg_policy pol
      on t.relrowsecurity and not r.rolbypassrls and p.command is not null
      and pol.polrelid = t.oid and pol.polpermissive and pol.polcmd in (p.command::"char", '*')
      and exists (select from pg_catalog.unnest(pol.polroles) for_role
                    where for_role = 0 or pg_catalog.pg_has_role(r.oid, for_role, 'usage'))
    where p.command is null or not t.relrowsecurity or r.rolbypassrls or pol.oid is not null
  union all
  -- A view that reads as its owner.
  select case p.privilege when 'select' then 'read' when 'insert' then case v.of_table when 'push_notifications' then 'cause' else 'change' end
                          else 'change' end,
         v.about, r.name, r.is_service, p.privilege, v.shown,
         case v.relkind when 'm' then 'materialized view' else 'view' end, false, null, null
    from views v
    cross join (values ('select'), ('insert'), ('update'), ('delete')) p(privilege)
    join roles r on pg_catalog.has_table_privilege(r.oid, v.oid, p.privilege)
                    or p.privilege <> 'delete' and pg_catalog.has_any_column_privilege(r.oid, v.oid, p.privilege)
    where v.oid is distinct from pg_catalog.to_regclass('public.push_recipients')
      and (p.privilege = 'select' or v.relkind = 'v')
      and v.as_owner
  union all
  -- A function that runs with its owner's rights, if the owner has rights on the table.
  select e.effect, f.about, r.name, r.is_service, case when f.is_procedure then 'execute procedure' else 'execute' end, f.shown,
         'function', exists (select from ours_functions o where o.oid = f.oid),
         null, null
    from effects f
    join tables t on t.name = f.of_table
      and (pg_catalog.has_any_column_privilege(f.proowner, t.oid, 'select, insert, update')
           or pg_catalog.has_table_privilege(f.proowner, t.oid, 'delete'))
    cross join lateral (
      select 'cause' as effect where f.inserts and f.of_table = 'push_notifications'
      union all
      select 'change' where f.changes or f.inserts and f.of_table <> 'push_notifications'
      union all
      select 'read' where not f.inserts and not f.changes
    ) e
    join roles r on pg_catalog.has_function_privilege(r.oid, f.oid, 'execute')
      and pg_catalog.has_schema_privilege(r.oid, f.pronamespace, 'usage')
    where f.prosecdef and not f.is_trigger
  union all
  -- A trigger of another table that runs such a function, for a role that may write to that table.
  select case when f.inserts and f.of_table = 'push_notifications' then 'cause' when f.inserts or f.changes then 'change' else 'read' end,
         f.about, r.name, r.is_service, p.privilege, c.oid::regclass::text,
         pg_catalog.format('trigger "%%s"', g.tgname), false, null, null
    from effects f
    join pg_catalog.pg_trigger g on g.tgfoid = f.oid and not g.tgisinternal and g.tgenabled <> 'D'
    join pg_catalog.pg_class c on c.oid = g.tgrelid
      and not exists (select from tables t where t.oid = c.oid and t.name = f.of_table)
    join (values ('insert', 4), ('delete', 8), ('update', 16)) p(privilege, bit) on g.tgtype & p.bit > 0
    join roles r on case p.privilege when 'delete' then pg_catalog.has_table_privilege(r.oid, c.oid, 'delete')
                                     else pg_catalog.has_any_column_privilege(r.oid, c.oid, p.privilege) end
    where f.prosecdef and f.is_trigger and (f.inserts or f.changes)
  union all
  -- A trigger of a table to which a function of push-listener writes for its caller. Such a trigger runs with the rights
  -- of the owner, even if its function is not security definer.
  select case when f.inserts and f.of_table = 'push_notifications' then 'cause' else 'change' end,
         f.about, r.name, r.is_service, 'execute', o.oid::regprocedure::text,
         pg_catalog.format('trigger "%%s"', g.tgname), false, null, null
    from (values ('push_devices', 'public.register_device(text, text, uuid)', 4 | 8 | 16),
                 ('push_delivery_logs', 'public.record_delivery_receipt(uuid, text, text, jsonb, timestamptz)', 4),
                 ('push_delivery_logs', 'public.record_delivery_receipts(jsonb[])', 4),
                 ('telemetry_logs', 'public.flush_telemetry(jsonb[], uuid)', 4)) w(relation, function, bits)
    join ours_functions o on o.oid = pg_catalog.to_regprocedure(w.function)
    join pg_catalog.pg_class c on c.relname = w.relation and c.relnamespace = 'public'::pg_catalog.regnamespace
    join pg_catalog.pg_trigger g on g.tgrelid = c.oid and not g.tgisinternal and g.tgenabled <> 'D' and g.tgtype & w.bits > 0
    join effects f on f.oid = g.tgfoid and f.of_table <> w.relation and (f.inserts or f.changes)
    join roles r on pg_catalog.has_function_privilege(r.oid, o.oid, 'execute')
  union all
  -- A user who is a service, or a role that may become one. Supabase's own servers become one for each request, and are
  -- left out.
  select 'cause', 'pushes', r.name, false, 'set role', s.rolname::text, 'membership of a service', false, null, null
    from roles r
    join pg_catalog.pg_roles s on s.rolname in ('service_role', 'push_listener', 'push_listener_operator') and s.oid <> r.oid
      and pg_catalog.pg_has_role(r.oid, s.oid, 'member')
    where not r.is_service and r.name <> 'authenticator' and not pg_catalog.starts_with(r.name, 'supabase_')
  union all
  -- A role that is a member of the owner, or may become the owner.
  select 'change', 'pushes', r.rolname, false, 'set role', pg_catalog.pg_get_userbyid(q.relowner)::text, 'membership', false, null, null
    from pg_catalog.pg_roles r, queue q
    where not r.rolsuper and r.oid <> q.relowner and pg_catalog.pg_has_role(r.oid, q.relowner, 'member')
      and not pg_catalog.starts_with(r.rolname, 'pg_')
)
select w.effect, w.about, pg_catalog.array_agg(distinct w.role order by w.role) as roles,
       pg_catalog.count(distinct w.role) = (select pg_catalog.count(*) from roles where not is_service) as everybody,
       w.privilege, w.object, w.by, w.is_ours or w.is_service as expected, w.condition, w.policy
  from ways w
  group by w.effect, w.about, w.privilege, w.object, w.by, w.condition, w.policy, w.is_ours or w.is_service
  order by w.is_ours or w.is_service, pg_catalog.array_position(array['cause', 'change', 'read'], w.effect),
           w.object, w.privilege, w.by
