-- Who may do what with which table: docs/privileges.md says it in one table, of which
-- tests/integration/postgres/test_privileges.py tries every cell.
--
-- Default privileges are not relied on: older Supabase projects grant everything on a new table to the three API roles,
-- newer ones nothing. So everything is taken away and what is meant is given, by push_listener.secure(). The owner of
-- the tables may call that again at any time: when a role or auth.uid() has come that was missing, or when the view
-- push_recipients has been dropped and made anew.

-- What there was ---------------------------------------------------------------------------------------------------

create function push_listener.guarded()
  returns table (object text, kind text, relation oid, owner oid, acl aclitem[])
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select c.oid::regclass::text, case c.relkind when 'S' then 'sequence' else 'table' end, c.oid, c.relowner,
         coalesce(c.relacl, pg_catalog.acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))
    from pg_catalog.pg_class c
    where c.oid in ('public.push_notifications'::regclass, 'public.push_delivery_logs'::regclass,
                    'public.push_devices'::regclass, 'public.telemetry_logs'::regclass,
                    'public.push_recipients'::regclass)
       or c.relkind = 'S' and exists (
            select from pg_catalog.pg_depend d
              where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i')
                and d.refclassid = 'pg_catalog.pg_class'::regclass
                and d.refobjid in ('public.push_notifications'::regclass, 'public.push_delivery_logs'::regclass,
                                   'public.push_devices'::regclass, 'public.telemetry_logs'::regclass))
  union all
  select p.oid::regprocedure::text, 'function', null, p.proowner,
         coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))
    from pg_catalog.pg_proc p
    where p.oid = 'public.push_disable_token(text, text)'::regprocedure
$$;
comment on function push_listener.guarded() is
  'The tables, the view, the sequences and the function whose privileges push_listener.secure() sets, as they are now.';

insert into push_listener.before (kind, relation, name, definition)
select 'grant', g.object, format('%s%s to %s', a.privilege_type, g.columns, grantee.name),
       format('grant %s%s on %s %s to %s%s', lower(a.privilege_type), g.columns, g.kind, g.object, grantee.name,
              case when bool_or(a.is_grantable) then ' with grant option' end)
  from (
    select object, kind, owner, acl, '' as columns from push_listener.guarded()
    union all
    select g.object, g.kind, g.owner, t.attacl, format(' (%I)', t.attname)
      from push_listener.guarded() g
      join pg_attribute t on t.attrelid = g.relation and t.attacl is not null and not t.attisdropped
  ) g
  cross join lateral aclexplode(g.acl) a
  left join pg_roles r on r.oid = a.grantee
  cross join lateral (select coalesce(quote_ident(r.rolname), 'public') as name) grantee
  where a.grantee <> g.owner
  group by g.object, g.kind, g.columns, a.privilege_type, grantee.name;

create function push_listener.columns(relation text) returns text[]
  language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select case relation
    when 'push_notifications' then array[
      'id', 'user_id', 'device_token', 'topic', 'condition', 'title', 'body', 'data', 'channel', 'priority', 'image',
      'options', 'expires_at', 'collapse_key', 'idempotency_key', 'next_attempt_at', 'status', 'retry_count',
      'last_retry_at', 'delivery_attempts', 'last_error', 'error_code', 'fcm_message_id', 'claimed_by', 'lost_claims', 'sent_at',
      'delivered_at', 'created_at', 'updated_at']
    when 'push_delivery_logs' then array['id', 'push_id', 'device_token', 'status', 'details', 'created_at']
    when 'push_devices' then array[
      'token', 'user_id', 'platform', 'created_at', 'updated_at', 'disabled_at', 'disabled_reason']
    when 'telemetry_logs' then array[
      'id', 'type', 'message', 'meta', 'timestamp', 'user_id', 'batch_id', 'processed_at', 'created_at']
  end
$$;
comment on function push_listener.columns(text) is
  'The columns that mean something to push-listener; any other is the application''s own.';

-- What users may go on doing ----------------------------------------------------------------------------------------
--
-- In tables that were there before, users keep what the application let them do, as far as that is no way to forge or
-- repeat a push. It is written down as role, privilege and columns ('keep'). That is the most that secure() leaves to
-- them; what the application takes away later stays away.
--
--   select   PUBLIC, anon, authenticated: the columns that they could read, and none that push-listener added. A
--            privilege on the whole table would cover the new columns, so it becomes one on the old columns. Where
--            row-level security let them read no row they keep nothing, or a policy of ours could open what was closed.
--   insert   authenticated: the columns that there were; the trigger below makes every such row a new one
--   update   authenticated: no column of ours in the queue and its logs
--   delete   authenticated: as the policies say; in the queue finished rows only, in its logs none
--
-- Insert, update and delete count where the role had the privilege and a policy opened it, or row-level security was
-- off. Anonymous users keep one of these: they insert telemetry where a policy names them, because an application may
-- report what goes wrong before anybody has signed in.

-- A role inherits the privilege of one role and the policy of another: a role of the application with the rights of
-- authenticated that a policy names, or one that is a member of both.
create function push_listener.reaches(policy_role oid, grantee oid) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select policy_role = 0 or exists (
    select from pg_catalog.pg_roles r
      where not r.rolsuper and not r.rolbypassrls
        and pg_catalog.pg_has_role(r.oid, policy_role, 'usage') and pg_catalog.pg_has_role(r.oid, grantee, 'usage'))
$$;
comment on function push_listener.reaches(oid, oid) is
  'Whether a policy for one role holds for somebody who has the rights of another; policy_role 0: for everybody.';

with adopted as (
  select c.oid, c.relname, c.relrowsecurity, c.relowner, c.relacl, push_listener.columns(c.relname) as ours
    from pg_class c
    where c.relnamespace = 'public'::regnamespace and push_listener.adopted(c.relname)
), old_columns as (
  select t.oid, t.relname, t.relrowsecurity, t.relowner, t.relacl, t.ours, a.attnum, a.attname, a.attacl
    from adopted t
    join push_listener.before b on b.kind = 'column' and b.relation = t.relname
    join pg_attribute a on a.attrelid = t.oid and a.attname = b.name and not a.attisdropped
), readable as (
  select distinct c.oid, c.relname, c.relrowsecurity, c.attnum, c.attname, g.grantee
    from old_columns c
    cross join lateral (
      select x.grantee, x.privilege_type from aclexplode(c.relacl) x
      union all
      select x.grantee, x.privilege_type from aclexplode(c.attacl) x
    ) g
    where g.privilege_type = 'SELECT' and g.grantee <> c.relowner
), read as (
  select r.relname, coalesce(role.rolname, 'public') as role, 'select' as privilege, r.attnum, r.attname
    from readable r
    left join pg_roles role on role.oid = r.grantee
    where coalesce(role.rolname, 'public') in ('public', 'anon', 'authenticated')
      and (not r.relrowsecurity or exists (
        select from pg_policy p, unnest(p.polroles) for_role
          where p.polrelid = r.oid and p.polpermissive and p.polcmd in ('r', '*')
            and (r.grantee = 0 or push_listener.reaches(for_role, r.grantee))))
), open as (
  select t.*, r.rolname, command.name as command
    from adopted t
    cross join (values ('insert', 'a'), ('update', 'w'), ('delete', 'd')) command(name, code)
    join pg_roles r on r.rolname = 'authenticated'
                       or r.rolname = 'anon' and t.relname = 'telemetry_logs' and command.name = 'insert'
    where not t.relrowsecurity and command.name <> 'delete'
       or exists (
         select from pg_policy p, unnest(p.polroles) for_role
           where p.polrelid = t.oid and p.polpermissive and p.polcmd in (command.code::"char", '*')
             and (r.oid = for_role
                  or r.rolname = 'authenticated' and push_listener.reaches(for_role, r.oid)))
), written as (
  select o.relname, o.rolname, o.command, c.attnum, c.attname
    from open o
    join old_columns c on c.oid = o.oid
    where o.command <> 'delete' and has_column_privilege(o.rolname, o.oid, c.attnum, o.command)
      and not (o.command = 'update' and o.relname in ('push_notifications', 'push_delivery_logs')
               and c.attname = any (o.ours))
)
insert into push_listener.before (kind, relation, name, definition)
select 'keep', k.relname, k.role || ' ' || k.privilege, array_agg(k.attname::text order by k.attnum)::text
  from (select * from read union all select * from written) as k(relname, role, privilege, attnum, attname)
  group by k.relname, k.role, k.privilege
union all
select 'keep', o.relname, o.rolname || ' delete', null
  from open o
  where o.command = 'delete' and o.relname <> 'push_delivery_logs'
    and has_table_privilege(o.rolname, o.oid, 'delete');

create function push_listener.kept()
  returns table (relation text, role text, privilege text, columns text[])
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select b.relation, "substring"(b.name, '^(.*) [a-z]+$'), "substring"(b.name, ' ([a-z]+)$'), b.definition::text[]
    from push_listener.before b
    where b.kind = 'keep'
$$;
comment on function push_listener.kept() is
  'What roles of the application keep in tables that were there before; columns null: the whole table.';

create function push_listener.grant_kept() returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  k record;
begin
  for k in
    select kept.* from push_listener.kept() kept
      where kept.role = 'public' or exists (select from pg_catalog.pg_roles r where r.rolname = kept.role)
  loop
    execute pg_catalog.format('grant %s%s on public.%I to %s', k.privilege,
      '(' || (select pg_catalog.string_agg(pg_catalog.quote_ident(c), ', ') from pg_catalog.unnest(k.columns) c) || ')',
      k.relation, case k.role when 'public' then 'public' else pg_catalog.quote_ident(k.role) end);
  end loop;
end
$$;
comment on function push_listener.grant_kept() is 'Grants what push_listener.kept() says.';

-- Users who could read every column of a table may rely on select *, which asks for every column that the table has now.
-- "push-listener migrate --share-new-columns" lets them read the new columns too, in the rows that the application's
-- own policies show them.
create function push_listener.share_new_columns() returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  update push_listener.before k
    set definition = null
    where k.kind = 'keep' and k.name = 'authenticated select'
      and not exists (
        select from push_listener.before c
          where c.kind = 'column' and c.relation = k.relation and c.name <> all (k.definition::text[]));
  perform push_listener.grant_kept();
end
$$;
comment on function push_listener.share_new_columns() is
  'Lets authenticated read the columns that push-listener added to tables of which it could read every column.';

create function push_listener.begin_as_new() returns trigger
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  new.status := 'pending';
  new.next_attempt_at := pg_catalog.now();
  new.retry_count := 0;
  new.last_retry_at := null;
  new.delivery_attempts := 0;
  new.last_error := null;
  new.error_code := null;
  new.fcm_message_id := null;
  new.claimed_by := null;
  new.lost_claims := 0;
  new.sent_at := null;
  new.delivered_at := null;
  return new;
end
$$;
comment on function push_listener.begin_as_new() is
  'A row that a user inserts may name its state, as applications do, but has that of a new row.';

-- The listener's own role -------------------------------------------------------------------------------------------

do $$
begin
  if not exists (select from pg_roles where rolname = 'push_listener') then
    create role push_listener nologin;
    comment on role push_listener is 'Can do the work of push-listener run, and nothing else.';
  end if;
exception
  when insufficient_privilege then
    raise warning 'the role push_listener was not made, as % may not create roles: push-listener works as the owner of '
                  'the tables meanwhile. To have the role, let an administrator run "create role push_listener '
                  'nologin", then the owner "select push_listener.secure()"', current_user;
  when duplicate_object or unique_violation then
    null;  -- another database of this server was migrated at the same moment
end
$$;

-- A dead token is marked with the owner's rights, so that the listener needs none on where tokens are kept.
do $$
begin
  if not exists (
    select from push_listener.before where kind = 'function' and relation = 'push_disable_token'
  ) then
    alter function public.push_disable_token(text, text) security definer;
  end if;
end
$$;

-- What is granted, what is meant, and the difference --------------------------------------------------------------

-- The functions of schema public, and the roles that may call each.
create function push_listener.api() returns table (function text, roles text[])
  language sql immutable set search_path = pg_catalog, pg_temp
as $$
  values
    ('public.fetch_pending_pushes(integer)', '{service_role}'::text[]),
    ('public.mark_push_sent(uuid)', '{service_role}'),
    ('public.mark_push_failed(uuid, text)', '{service_role}'),
    ('public.enqueue_push(uuid, text, text, text, text, text, jsonb, text, text, text, jsonb, text, text, timestamptz, '
     'timestamptz)', '{service_role}'),
    ('public.cancel_push(uuid)', '{service_role}'),
    ('public.requeue_pushes(uuid[], text, timestamptz, integer)', '{service_role}'),
    ('public.get_push_delivery_stats(integer)', '{service_role}'),
    ('public.record_delivery_receipt(uuid, text, text, jsonb)', '{authenticated,service_role}'),
    ('public.register_device(text, text, uuid)', '{authenticated,service_role}'),
    ('public.unregister_device(text)', '{authenticated,service_role}'),
    ('public.flush_telemetry(jsonb[])', '{authenticated,service_role}'),
    ('public.push_is_service(name)', '{service_role}'),
    ('public.push_disable_token(text, text)', '{service_role,push_listener}')
$$;
comment on function push_listener.api() is 'The functions of schema public, and which roles may call each.';

create function push_listener.can_tell_users() returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select exists (select from pg_catalog.pg_roles where rolname = 'authenticated')
    and case when pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('auth'), 'usage')
             then push_listener.trusts(pg_catalog.to_regprocedure('auth.uid()')) end is true
$$;
comment on function push_listener.can_tell_users() is
  'Whether there are users: the role authenticated, and a function auth.uid() that the owner may use and can trust.';

-- The application's own policy says which rows a user reads. Where there is none, a policy of ours shows a user its own
-- rows; but not where somebody it would let in may read columns of the application, which no policy had opened.
create function push_listener.shows_own_rows(p_relation text) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select push_listener.can_tell_users()
    and not exists (
      select from pg_catalog.pg_policy own, pg_catalog.unnest(own.polroles) for_role
        where own.polrelid = c.oid and own.polpermissive and own.polcmd in ('r', '*')
          and not pg_catalog.starts_with(own.polname, 'push_listener_')
          and push_listener.reaches(for_role, pg_catalog.to_regrole('authenticated')))
    and not exists (
      select from push_listener.before b
        join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = b.name and not a.attisdropped
        join pg_catalog.pg_roles r on pg_catalog.pg_has_role(r.oid, 'authenticated', 'usage')
          and not r.rolsuper and not r.rolbypassrls and not pg_catalog.pg_has_role(r.oid, c.relowner, 'usage')
        where b.kind = 'column' and b.relation = p_relation
          and pg_catalog.has_column_privilege(r.oid, c.oid, a.attnum, 'select'))
    from pg_catalog.pg_class c
    where c.relname = p_relation and c.relnamespace = 'public'::regnamespace
      and (c.relrowsecurity or not push_listener.adopted(p_relation))
$$;

create function push_listener.granted()
  returns table (kind text, object text, part text, role text, privilege text, grantable boolean, grantor text)
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  with objects as (
    select g.kind, g.object, '' as part, g.owner, g.acl from push_listener.guarded() g
    union all
    select g.kind, g.object, a.attname, g.owner, a.attacl
      from push_listener.guarded() g
      join pg_catalog.pg_attribute a on a.attrelid = g.relation and a.attacl is not null and not a.attisdropped
    union all
    select case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass::text, '', c.relowner,
           coalesce(c.relacl, pg_catalog.acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))
      from pg_catalog.pg_class c
      where c.relnamespace = 'push_listener'::regnamespace and c.relkind in ('r', 'p', 'v', 'S')
    union all
    select 'table', c.oid::regclass::text, a.attname, c.relowner, a.attacl
      from pg_catalog.pg_class c
      join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attacl is not null and not a.attisdropped
      where c.relnamespace = 'push_listener'::regnamespace
    union all
    select 'function', p.oid::regprocedure::text, '', p.proowner,
           coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))
      from pg_catalog.pg_proc p
      where p.pronamespace = 'push_listener'::regnamespace
         or p.oid in (select pg_catalog.to_regprocedure(a.function) from push_listener.api() a)
    union all
    select 'schema', n.nspname, '', n.nspowner, coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))
      from pg_catalog.pg_namespace n
      where n.nspname = 'push_listener'
  )
  select o.kind, o.object, o.part, coalesce(r.rolname, 'public'), pg_catalog.lower(a.privilege_type), a.is_grantable, g.rolname
    from objects o
    cross join lateral pg_catalog.aclexplode(o.acl) a
    left join pg_catalog.pg_roles r on r.oid = a.grantee
    left join pg_catalog.pg_roles g on g.oid = a.grantor and a.grantor <> o.owner
    where a.grantee <> o.owner
$$;
comment on function push_listener.granted() is
  'Every privilege that a role other than the owner has on what is push-listener''s; part: the column, or empty; grantor: who has passed it on, null for the owner.';

create function push_listener.meant()
  returns table (kind text, object text, part text, role text, privilege text)
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  with meant(kind, name, role, privileges, columns) as (
    values
      ('table', 'public.push_notifications', 'service_role', '{select,insert,update,delete}'::text[], '{""}'::text[]),
      ('table', 'public.push_devices', 'service_role', '{select,insert,update,delete}', '{""}'),
      ('table', 'public.push_delivery_logs', 'service_role', '{select,insert,update,delete}', '{""}'),
      ('table', 'public.telemetry_logs', 'service_role', '{select,insert,update,delete}', '{""}'),
      ('table', 'public.push_recipients', 'service_role', '{select}', '{""}'),

      ('table', 'public.push_notifications', 'push_listener', '{select}', push_listener.columns('push_notifications')),
      ('table', 'public.push_notifications', 'push_listener', '{update}',
       '{status,next_attempt_at,retry_count,last_retry_at,delivery_attempts,last_error,error_code,fcm_message_id,
         claimed_by,lost_claims,sent_at,updated_at}'),
      ('table', 'public.push_delivery_logs', 'push_listener', '{select,insert}', '{push_id,device_token,status,details}'),
      ('table', 'public.push_recipients', 'push_listener', '{select}', '{""}'),
      ('table', 'public.push_devices', 'push_listener', '{select}', '{token,user_id,platform,disabled_at}'),
      ('schema', 'push_listener', 'push_listener', '{usage}', '{""}'),
      ('function', 'push_listener.drift()', 'push_listener', '{execute}', '{""}'),
      ('table', 'push_listener.migrations', 'push_listener', '{select}', '{""}'),
      ('table', 'push_listener.workers', 'push_listener', '{select}', '{""}'),
      ('table', 'push_listener.workers', 'push_listener', '{insert}', '{id,name}'),
      ('table', 'push_listener.workers', 'push_listener', '{update}', '{stopped_at,guarded,lost}'),
      ('table', 'push_listener.lock_holders', 'push_listener', '{select}', '{""}'),
      ('function', 'push_listener.is_alive(integer)', 'push_listener', '{execute}', '{""}'),
      ('table', 'push_listener.rate', 'push_listener', '{select}', '{""}'),
      ('table', 'push_listener.rate', 'push_listener', '{update}', '{part,lowered_at}'),
      ('table', 'push_listener.served', 'push_listener', '{select}', '{""}'),
      ('table', 'push_listener.served', 'push_listener', '{insert}',
       '{system_identifier,database_oid,address,database_name}')
    union all
    select 'function', a.function, r.role, '{execute}', '{""}'
      from push_listener.api() a, pg_catalog.unnest(a.roles) r(role)
    union all
    -- A user sees its own pushes and what became of them, and its devices.
    select 'table', 'public.' || t.relation, 'authenticated', '{select}',
           case when not push_listener.adopted(t.relation) then '{""}'
                else array(
                  select c from pg_catalog.unnest(push_listener.columns(t.relation)) c
                    where not exists (select from push_listener.before b
                                        where b.kind = 'column' and b.relation = t.relation and b.name = c)) end
      from (values ('push_notifications'), ('push_delivery_logs'), ('push_devices')) t(relation)
      where not push_listener.adopted(t.relation) or push_listener.shows_own_rows(t.relation)
    union all
    -- A table that was adopted may number its rows with a sequence, which takes a privilege of its own.
    select distinct 'sequence', s.oid::regclass::text, r.rolname, '{usage}'::text[], '{""}'::text[]
      from push_listener.guarded() t
      join pg_catalog.pg_attrdef def on def.adrelid = t.relation
      join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_attrdef'::regclass and d.objid = def.oid
                                     and d.refclassid = 'pg_catalog.pg_class'::regclass
      join pg_catalog.pg_class s on s.oid = d.refobjid and s.relkind = 'S'
      join pg_catalog.pg_roles r on r.rolname = 'service_role'
        or r.rolname = 'push_listener' and t.relation = 'public.push_delivery_logs'::regclass
        or exists (
          select from push_listener.kept() k
            where k.privilege = 'insert' and k.role = r.rolname
              and t.relation = pg_catalog.format('public.%I', k.relation)::regclass)
  )
  select m.kind,
         case m.kind when 'function' then pg_catalog.to_regprocedure(m.name)::text
                     when 'schema' then m.name
                     else pg_catalog.to_regclass(m.name)::text end,
         c.part, m.role, p.privilege
    from meant m, pg_catalog.unnest(m.privileges) p(privilege), pg_catalog.unnest(m.columns) c(part)
    where exists (select from pg_catalog.pg_roles r where r.rolname = m.role)
      -- A later migration makes it, or an earlier one is being taken back.
      and case m.kind when 'function' then pg_catalog.to_regprocedure(m.name) is not null
                      when 'schema' then true
                      else pg_catalog.to_regclass(m.name) is not null end
$$;
comment on function push_listener.meant() is
  'The privileges that roles other than the owner are meant to have on what is push-listener''s.';

create function push_listener.policies()
  returns table (relation regclass, name text, command text, role text, condition text)
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  -- A push of the past, and its log, may name a device that is another user's now, and its registration token is no
  -- longer this user's to see. So a row that names a device is shown as long as the user has that device.
  with own_device(condition) as (
    select case when pg_catalog.has_column_privilege(r.oid, c.oid, 'token', 'select')
                     and pg_catalog.has_column_privilege(r.oid, c.oid, 'user_id', 'select')
                     or push_listener.shows_own_rows('push_devices')
                then '(device_token is null or device_token in (select d.token from public.push_devices d '
                     'where d.user_id = (select auth.uid())))'
                else 'device_token is null' end
      from pg_catalog.pg_class c
      left join pg_catalog.pg_roles r on r.rolname = 'authenticated'
      where c.oid = 'public.push_devices'::regclass
  )
  select c.oid::regclass, p.name, p.command, p.role, p.condition
    from own_device cross join lateral (values
      ('push_notifications', 'push_listener_claims', 'select', 'push_listener', 'using (true)'),
      ('push_notifications', 'push_listener_settles', 'update', 'push_listener', 'using (true) with check (true)'),
      ('push_delivery_logs', 'push_listener_reads', 'select', 'push_listener', 'using (true)'),
      ('push_delivery_logs', 'push_listener_logs', 'insert', 'push_listener', 'with check (true)'),
      ('push_devices', 'push_listener_reads', 'select', 'push_listener', 'using (true)'),
      ('push_recipients', 'push_listener_reads', 'select', 'push_listener', 'using (true)'), -- if it is a table
      -- Supabase's service_role bypasses row-level security; its members elsewhere do not.
      ('push_notifications', 'push_listener_service', 'all', 'service_role', 'using (true) with check (true)'),
      ('push_delivery_logs', 'push_listener_service', 'all', 'service_role', 'using (true) with check (true)'),
      ('push_devices', 'push_listener_service', 'all', 'service_role', 'using (true) with check (true)'),
      ('telemetry_logs', 'push_listener_service', 'all', 'service_role', 'using (true) with check (true)'),
      ('push_notifications', 'push_listener_own', 'select', 'authenticated',
       'using (user_id = (select auth.uid()) and ' || own_device.condition || ')'),
      ('push_delivery_logs', 'push_listener_own', 'select', 'authenticated', 'using (' || own_device.condition || ' and ' || case
         -- A user who may see a push by the application's own policy sees its logs.
         when push_listener.shows_own_rows('push_notifications')
           -- An array, so that the logs are found by their index and not read from end to end.
           then 'push_id = any (array(select p.id from public.push_notifications p '
                'where p.user_id = (select auth.uid())))'
         else 'exists (select from public.push_notifications p where p.id = push_delivery_logs.push_id)' end || ')'),
      -- As the index push_devices_live has it.
      ('push_devices', 'push_listener_own', 'select', 'authenticated',
       'using (user_id = (select auth.uid()) and disabled_at is null)')
    ) as p (relation, name, command, role, condition)
    join pg_catalog.pg_class c
      on c.relname = p.relation and c.relnamespace = 'public'::regnamespace
      -- In a table that was there, row-level security that is off is the application's decision.
      and (c.relrowsecurity or p.relation <> 'push_recipients' and not push_listener.adopted(p.relation))
    join pg_catalog.pg_roles r on r.rolname = p.role
    where p.name <> 'push_listener_own' or push_listener.shows_own_rows(p.relation)
  union all
  select 'public.push_notifications'::regclass, 'push_listener_finished_only', 'restrictive delete', 'authenticated',
         'using (next_attempt_at is null)'
    from push_listener.kept() k
    where k.relation = 'push_notifications' and k.role = 'authenticated' and k.privilege = 'delete'
      and exists (select from pg_catalog.pg_roles where rolname = 'authenticated')
$$;
comment on function push_listener.policies() is
  'The policies that push-listener''s tables are meant to have, beside those of the application.';

-- Which inserts are a user's: the condition of the trigger push_listener_begin_as_new; null where no user may insert. A
-- role of the application's own that has the rights of authenticated is a user too. A service, or the owner, is none.
create function push_listener.user_inserts() returns text
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select pg_catalog.format(
           'current_user = ''anon'' or pg_catalog.pg_has_role(''authenticated'', ''usage'') '
           'and not pg_catalog.pg_has_role(%L, ''usage'')%s',
           (select pg_catalog.pg_get_userbyid(c.relowner) from pg_catalog.pg_class c
              where c.oid = 'public.push_notifications'::regclass),
           (select ' and not pg_catalog.pg_has_role(''service_role'', ''usage'')'
              from pg_catalog.pg_roles where rolname = 'service_role'))
    where exists (select from push_listener.kept() k
                    where k.relation = 'push_notifications' and k.role = 'authenticated' and k.privilege = 'insert')
      and exists (select from pg_catalog.pg_roles where rolname = 'authenticated')
$$;

-- A policy's own text is not kept by Postgres. The comment has it, and a hash of what Postgres made of it.
create function push_listener.policy_mark(p_relation regclass, p_name text, p_condition text) returns text
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select pg_catalog.format('%s [%s]', p_condition, pg_catalog.md5(pg_catalog.concat_ws(' ', p.polcmd, p.polpermissive,
           p.polroles::regrole[]::text, pg_catalog.pg_get_expr(p.polqual, p.polrelid),
           pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))))
    from pg_catalog.pg_policy p
    where p.polrelid = p_relation and p.polname = p_name
$$;

create function push_listener.drift()
  returns table (finding text, statement text)
  language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  with extra as (
    select g.* from push_listener.granted() g
      where g.role in ('public', 'anon', 'authenticated', 'service_role', 'push_listener')
        and (g.grantable or not exists (
          select from push_listener.meant() m
            where (m.kind, m.object, m.part, m.role, m.privilege) = (g.kind, g.object, g.part, g.role, g.privilege)))
        and not exists (
          select from push_listener.kept() k
            where not g.grantable and g.object = 'public.' || k.relation and g.role = k.role and g.privilege = k.privilege
              and (k.columns is null or g.part = any (k.columns)))
        -- Columns of the application are the application's to grant.
        and not (not g.grantable and g.part <> '' and g.privilege <> 'references' and exists (
          select from push_listener.before b
            where b.kind = 'table' and g.object = 'public.' || b.relation
              and g.part <> all (push_listener.columns(b.relation))))
  ), missing as (
    select m.* from push_listener.meant() m
      where not exists (
        select from push_listener.granted() g
          where (g.kind, g.object, g.part, g.role, g.privilege) = (m.kind, m.object, m.part, m.role, m.privilege))
  ), changes as (
    select true as is_extra, e.kind, e.object, e.role, e.privilege, e.grantor,
           pg_catalog.string_agg(pg_catalog.quote_ident(nullif(e.part, '')), ', ' order by e.part) as columns
      from extra e
      group by e.kind, e.object, e.role, e.privilege, e.grantor, e.part = ''
    union all
    select false, m.kind, m.object, m.role, m.privilege, null,
           pg_catalog.string_agg(pg_catalog.quote_ident(nullif(m.part, '')), ', ' order by m.part)
      from missing m
      group by m.kind, m.object, m.role, m.privilege, m.part = ''
  ), policies as (
    select p.relation, p.name, m.command, m.role, m.condition, p.there,
           p.mark is not distinct from push_listener.policy_mark(p.relation, p.name, m.condition) as as_meant
      from (
        select own.polrelid::regclass as relation, own.polname::text as name, true as there,
               pg_catalog.obj_description(own.oid, 'pg_policy') as mark
          from pg_catalog.pg_policy own
          where pg_catalog.starts_with(own.polname, 'push_listener_')
            and own.polrelid in (select g.relation from push_listener.guarded() g)
        union
        select m.relation, m.name, false, null from push_listener.policies() m
          where not exists (select from pg_catalog.pg_policy own where own.polrelid = m.relation and own.polname = m.name)
      ) p
      left join push_listener.policies() m on m.relation = p.relation and m.name = p.name
  )
  select case when is_extra then pg_catalog.format('%s may %s%s on %s', case role when 'public' then 'everybody' else role end,
                                        privilege, ' (' || columns || ')', object)
              else pg_catalog.format('%s may not %s%s on %s', role, privilege, ' (' || columns || ')', object) end,
         -- What another role has passed on, only that role can revoke. The owner takes back that it may.
         case when grantor is not null then pg_catalog.format('revoke grant option for %s%s on %s %s from %I cascade', privilege,
                ' (' || columns || ')', kind, object, grantor)
              when is_extra then pg_catalog.format('revoke %s%s on %s %s from %s cascade', privilege,
                ' (' || columns || ')', kind, object, case role when 'public' then role else pg_catalog.quote_ident(role) end)
              else pg_catalog.format('grant %s%s on %s %s to %I', privilege, ' (' || columns || ')', kind, object, role) end
    from changes
  union all
  select pg_catalog.format('row-level security is off on public.%I', c.relname),
         pg_catalog.format('alter table public.%I enable row level security', c.relname)
    from pg_catalog.pg_class c
    where c.relname in ('push_notifications', 'push_delivery_logs', 'push_devices', 'telemetry_logs')
      and c.relnamespace = 'public'::regnamespace and not c.relrowsecurity and not push_listener.adopted(c.relname)
  union all
  select pg_catalog.format('the policy %s on %s is %s', p.name, p.relation,
           case when p.condition is null then 'there, and is not meant to be' when p.there then 'not as it was'
                else 'missing' end),
         pg_catalog.concat_ws('; ',
           case when p.there then pg_catalog.format('drop policy %I on %s', p.name, p.relation) end,
           case when p.condition is not null then
             pg_catalog.format('create policy %I on %s as %s for %s to %I %s', p.name, p.relation,
               case when p.command = 'restrictive delete' then 'restrictive' else 'permissive' end,
               pg_catalog.replace(p.command, 'restrictive ', ''), p.role, p.condition) end)
    from policies p
    where p.condition is null or not p.there or not p.as_meant
  union all
  select pg_catalog.format('the trigger push_listener_begin_as_new is %s',
           case when t.condition is null then 'there, and is not meant to be' when t.there then 'not as it was'
                else 'missing' end),
         pg_catalog.concat_ws('; ',
           case when t.there then 'drop trigger push_listener_begin_as_new on public.push_notifications' end,
           case when t.condition is not null then pg_catalog.format(
             'create trigger push_listener_begin_as_new before insert on public.push_notifications '
             'for each row when (%s) execute function push_listener.begin_as_new()', t.condition) end)
    from (
      select g.oid is not null as there, pg_catalog.obj_description(g.oid, 'pg_trigger') as mark,
             push_listener.user_inserts() as condition
        from (values ('push_listener_begin_as_new')) meant(name)
        left join pg_catalog.pg_trigger g
          on g.tgname = meant.name and g.tgrelid = 'public.push_notifications'::regclass
    ) t
    where t.there <> (t.condition is not null) or t.there and t.mark is distinct from t.condition
  union all
  select pg_catalog.format('the function %s has lost its search_path', p.oid::regprocedure),
         pg_catalog.format('alter function %s set search_path = pg_catalog, pg_temp', p.oid::regprocedure)
    from pg_catalog.pg_proc p
    where (p.pronamespace = 'push_listener'::regnamespace
           or p.oid in (select pg_catalog.to_regprocedure(a.function) from push_listener.api() a)
              and not (p.proname = 'push_disable_token' and exists (
                select from push_listener.before b where b.kind = 'function' and b.relation = 'push_disable_token')))
      and coalesce(p.proconfig, '{}') @> '{"search_path=pg_catalog, pg_temp"}' is not true
$$;
comment on function push_listener.drift() is
  'What differs from the privileges, policies and settings that are meant, in words, and the statement that mends it.';

create function push_listener.secure() returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  found record;
  lacking text;
begin
  -- Two at once would change the same rows of the catalogue. Nothing else takes this lock.
  lock table push_listener.before in share update exclusive mode;
  -- To revoke a privilege on a table revokes it on each column as well, so what is missing is found afterwards.
  for found in
    select d.statement from push_listener.drift() d where pg_catalog.starts_with(d.statement, 'revoke ')
  loop
    execute found.statement;
  end loop;
  for found in select d.statement from push_listener.drift() d loop
    execute found.statement;
  end loop;
  for found in
    select p.relation, p.name, push_listener.policy_mark(p.relation, p.name, p.condition) as mark
      from push_listener.policies() p
      join pg_catalog.pg_policy own on own.polrelid = p.relation and own.polname = p.name
      where pg_catalog.obj_description(own.oid, 'pg_policy') is null
  loop
    execute pg_catalog.format('comment on policy %I on %s is %L', found.name, found.relation, found.mark);
  end loop;
  for found in
    select from pg_catalog.pg_trigger g
      where g.tgname = 'push_listener_begin_as_new' and g.tgrelid = 'public.push_notifications'::regclass
        and pg_catalog.obj_description(g.oid, 'pg_trigger') is null
  loop
    execute pg_catalog.format('comment on trigger push_listener_begin_as_new on public.push_notifications is %L',
                              push_listener.user_inserts());
  end loop;
  if exists (select from pg_catalog.pg_roles where rolname = 'push_listener')
     and not pg_catalog.has_schema_privilege('push_listener', 'public', 'usage') then
    grant usage on schema public to push_listener;
  end if;
  select pg_catalog.string_agg(d.finding, '; ') into lacking from push_listener.drift() d;
  if lacking is not null then
    raise exception using errcode = 'object_not_in_prerequisite_state',
      message = pg_catalog.format('these privileges cannot be set: %s', lacking),
      hint = 'Another role has granted them. Let that role, or a superuser, revoke them, then run this again.';
  end if;

  -- What is not as it should be, and is not ours to change.
  if not push_listener.can_tell_users() then
    raise warning 'no user can read push_notifications, push_delivery_logs or push_devices, as there is no role '
                  'authenticated, or no function auth.uid() that the owner may use. Nothing else needs them. Once they '
                  'are there, let the owner run "select push_listener.secure()"';
  end if;
  select pg_catalog.string_agg(pg_catalog.format('%I on %s', p.polname, p.polrelid::regclass), ', ') into lacking
    from pg_catalog.pg_policy p
    join push_listener.guarded() g on g.relation = p.polrelid
    join pg_catalog.pg_roles r on r.rolname = 'push_listener'
    cross join lateral pg_catalog.unnest(p.polroles) for_role
    where not p.polpermissive and (for_role = 0 or pg_catalog.pg_has_role(r.oid, for_role, 'usage'));
  if lacking is not null then
    raise warning 'restrictive policies hold for the role push_listener as well, and a listener with that role sees only '
                  'what they let it see: %. Name in them the roles that they are meant for', lacking;
  end if;
  -- A security_invoker view reads with the rights of the role that queries it, so that role needs rights on its tables.
  select pg_catalog.string_agg(pg_catalog.format(
           'grant select (%s) on %s to push_listener', c.columns, c.relation), '; ') into lacking
    from (
      select d.refobjid::regclass as relation,
             pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' order by a.attnum) as columns
        from pg_catalog.pg_class v
        join pg_catalog.pg_rewrite w on w.ev_class = v.oid
        join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::regclass and d.objid = w.oid
          and d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid <> v.oid and d.refobjsubid > 0
        join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
        join pg_catalog.pg_roles r on r.rolname = 'push_listener'
        where v.oid = 'public.push_recipients'::regclass
          and v.reloptions && array['security_invoker=true', 'security_invoker=on', 'security_invoker=1']
          and not pg_catalog.has_column_privilege(r.oid, d.refobjid, d.refobjsubid::smallint, 'select')
        group by d.refobjid
    ) c;
  if lacking is not null then
    raise warning 'the role push_listener cannot read what is below the view push_recipients. Run "%" and, where '
                  'row-level security is on, create a policy for select to push_listener', lacking;
  end if;
  select pg_catalog.string_agg(r.rolname, ', ') into lacking
    from pg_catalog.pg_roles r
    where r.rolname in ('anon', 'authenticated')
      and (pg_catalog.has_column_privilege(r.oid, 'public.push_notifications', 'status', 'update')
           or pg_catalog.has_column_privilege(r.oid, 'public.push_notifications', 'next_attempt_at', 'update'));
  if lacking is not null then
    raise exception using errcode = 'object_not_in_prerequisite_state',
      message = pg_catalog.format('%s may change the state of rows in push_notifications', lacking),
      hint = 'The privilege comes from a role of which it is a member: revoke it there, then run this again.';
  end if;
end
$$;
comment on function push_listener.secure() is
  'Sets every privilege and policy of push-listener''s tables, and is right again after each call. It changes, and so locks, only what differs.';

-- What roles had on tables that were there goes; what they keep is given back.
do $$
declare
  found record;
begin
  for found in
    select g.object, g.kind, string_agg(r.name, ', ') as roles
      from push_listener.guarded() g
      cross join (
        select 'public' as name
        union all
        select quote_ident(rolname) from pg_roles
          where rolname in ('anon', 'authenticated', 'service_role', 'push_listener')
      ) r
      group by g.object, g.kind
  loop
    execute format('revoke all on %s %s from %s cascade', found.kind, found.object, found.roles);
  end loop;

  -- Other roles go on reading the columns that there were, and read no new one.
  for found in
    select c.relname, r.rolname, bool_or(a.is_grantable) as grantable,
           (select string_agg(quote_ident(b.name), ', ') from push_listener.before b
              join pg_attribute t on t.attrelid = c.oid and t.attname = b.name and not t.attisdropped
              where b.kind = 'column' and b.relation = c.relname) as columns
      from pg_class c
      cross join lateral aclexplode(c.relacl) a
      join pg_roles r on r.oid = a.grantee
      where c.relnamespace = 'public'::regnamespace and push_listener.adopted(c.relname)
        and a.privilege_type = 'SELECT' and a.grantee <> c.relowner
      group by c.oid, c.relname, r.rolname
  loop
    execute format('revoke select on public.%I from %I cascade', found.relname, found.rolname);
    execute format('grant select (%s) on public.%I to %I%s', found.columns, found.relname, found.rolname,
                   case when found.grantable then ' with grant option' end);
  end loop;

  perform push_listener.grant_kept();
  perform push_listener.secure();
end
$$;
