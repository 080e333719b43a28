-- Who may do what with which table: docs/privileges.md says it in one table, of which
-- tests/integration/test_privileges.py tries every cell.
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
-- In tables that were there before, a signed-in user keeps what the application let it do, as far as that is no way to
-- forge or repeat a push: a privilege counts that the role had and that some policy opened (or no row-level security
-- closed). It is written down as the grant that gives it back.
--
--   select   columns of ours, and of the application's those that could be read
--   insert   the columns that there were; the trigger below makes every such row a new one
--   update   no column of ours in the queue and its logs
--   delete   as the policies say; in the queue finished rows only, in its logs none
--
-- Anonymous users keep nothing, but for telemetry where a policy names them: an application may report what goes wrong
-- before anybody has signed in.

with adopted as (
  select c.oid, c.relname, c.relrowsecurity, push_listener.columns(c.relname) as ours
    from pg_class c
    where c.relnamespace = 'public'::regnamespace and push_listener.adopted(c.relname)
), open as (
  select t.*, r.rolname, command.name as command
    from adopted t
    cross join (values ('select', 'r'), ('insert', 'a'), ('update', 'w'), ('delete', 'd')) command(name, code)
    join pg_roles r on r.rolname = 'authenticated'
                       or r.rolname = 'anon' and t.relname = 'telemetry_logs' and command.name = 'insert'
    where not t.relrowsecurity and command.name <> 'delete'
       or exists (
         select from pg_policy p, unnest(p.polroles) for_role
           where p.polrelid = t.oid and p.polpermissive and p.polcmd in (command.code::"char", '*')
             and (r.oid = for_role
                  or r.rolname = 'authenticated' and (for_role = 0 or pg_has_role(r.oid, for_role, 'usage'))))
), kept as (
  select o.oid, o.relname, o.rolname, o.command, a.attnum, a.attname, true as was_there
    from open o
    join push_listener.before b on b.kind = 'column' and b.relation = o.relname
    join pg_attribute a on a.attrelid = o.oid and a.attname = b.name and not a.attisdropped
    where o.command <> 'delete' and has_column_privilege(o.rolname, o.oid, a.attnum, o.command)
      and not (o.command = 'update' and o.relname in ('push_notifications', 'push_delivery_logs')
               and a.attname = any (o.ours))
  union
  select t.oid, t.relname, r.rolname, 'select', a.attnum, a.attname, b.name is not null
    from adopted t
    join pg_roles r on r.rolname = 'authenticated'
    join pg_attribute a on a.attrelid = t.oid and not a.attisdropped and a.attname = any (t.ours)
    left join push_listener.before b on b.kind = 'column' and b.relation = t.relname and b.name = a.attname
    where t.relname <> 'telemetry_logs'
)
insert into push_listener.before (kind, relation, name, definition)
select 'keep', k.relname, k.rolname || ' ' || k.command,
       case
         -- The whole table, so that select * goes on working when the application adds a column.
         when k.command = 'select' and count(*) filter (where k.was_there) = (
                select count(*) from push_listener.before b where b.kind = 'column' and b.relation = k.relname)
           then format('grant select on public.%I to %I', k.relname, k.rolname)
         else format('grant %s (%s) on public.%I to %I', k.command,
                     string_agg(quote_ident(k.attname), ', ' order by k.attnum), k.relname, k.rolname)
       end
  from kept k
  group by k.oid, k.relname, k.rolname, k.command
union all
select 'keep', o.relname, o.rolname || ' delete', format('grant delete on public.%I to %I', o.relname, o.rolname)
  from open o
  where o.command = 'delete' and o.relname <> 'push_delivery_logs'
    and has_table_privilege(o.rolname, o.oid, 'delete');

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

-- Everything taken away, what is meant given ------------------------------------------------------------------------

create function push_listener.secure() returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  given record;
  object record;
  can_tell_users boolean := exists (select from pg_catalog.pg_roles where rolname = 'authenticated')
    and case when pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('auth'), 'usage')
             then pg_catalog.to_regprocedure('auth.uid()') is not null end is true;
  own_readers boolean;
  lacking text;
begin
  -- Privileges. Roles that do not exist are passed over.
  for object in
    select g.object, g.kind from push_listener.guarded() g
    union all
    select c.oid::regclass::text, case c.relkind when 'S' then 'sequence' else 'table' end
      from pg_catalog.pg_class c
      where c.relnamespace = 'push_listener'::regnamespace and c.relkind in ('r', 'p', 'v', 'S')
    union all
    select 'push_listener', 'schema'
  loop
    execute pg_catalog.format('revoke all on %s %s from %s cascade', object.kind, object.object, (
      select pg_catalog.string_agg(name, ', ') from (
        select 'public' as name
        union all
        select pg_catalog.quote_ident(rolname) from pg_catalog.pg_roles
          where rolname in ('anon', 'authenticated', 'service_role', 'push_listener')) roles));
  end loop;
  for object in
    select p.oid::regprocedure::text as object from pg_catalog.pg_proc p
      where p.pronamespace = 'push_listener'::regnamespace
  loop
    perform push_listener.allow(object.object::regprocedure, variadic '{}');
  end loop;
  -- As each was allowed where it was made, for roles that have come since.
  for given in
    select *
      from (values
        ('fetch_pending_pushes(integer)', '{service_role}'::text[]),
        ('mark_push_sent(uuid)', '{service_role}'),
        ('mark_push_failed(uuid, text)', '{service_role}'),
        ('enqueue_push(uuid, text, text, text, text, text, jsonb, text, text, text, jsonb, text, text, timestamptz, '
         'timestamptz)', '{service_role}'),
        ('cancel_push(uuid)', '{service_role}'),
        ('requeue_pushes(uuid[], text, timestamptz, integer)', '{service_role}'),
        ('get_push_delivery_stats(integer)', '{service_role}'),
        ('record_delivery_receipt(uuid, text, text, jsonb)', '{authenticated,service_role}'),
        ('register_device(text, text, uuid)', '{authenticated,service_role}'),
        ('unregister_device(text)', '{authenticated,service_role}'),
        ('flush_telemetry(jsonb[])', '{authenticated,service_role}'),
        ('push_disable_token(text, text)', '{service_role,push_listener}')
      ) as meant (function, roles)
  loop
    perform push_listener.allow(('public.' || given.function)::regprocedure, variadic given.roles);
  end loop;

  for given in
    select *
      from (values
        ('service_role', 'select, insert, update, delete on public.push_notifications'),
        ('service_role', 'select, insert, update, delete on public.push_devices'),
        ('service_role', 'select, insert, update, delete on public.push_delivery_logs'),
        ('service_role', 'select, insert, update, delete on public.telemetry_logs'),
        ('service_role', 'select on public.push_recipients'),

        ('push_listener', pg_catalog.format('select (%s) on public.push_notifications',
           pg_catalog.array_to_string(push_listener.columns('push_notifications'), ', '))),
        ('push_listener', 'update (status, next_attempt_at, retry_count, last_retry_at, delivery_attempts, '
           'last_error, error_code, fcm_message_id, claimed_by, lost_claims, sent_at, updated_at) on public.push_notifications'),
        ('push_listener', 'select (push_id, device_token, status, details) on public.push_delivery_logs'),
        ('push_listener', 'insert (push_id, device_token, status, details) on public.push_delivery_logs'),
        ('push_listener', 'select on public.push_recipients'),
        ('push_listener', 'select (token, user_id, platform, disabled_at) on public.push_devices'),
        ('push_listener', 'usage on schema push_listener'),
        ('push_listener', 'select on push_listener.migrations'),
        ('push_listener', 'select, insert (id, name), update (stopped_at, guarded, lost) on push_listener.workers'),
        ('push_listener', 'select on push_listener.lock_holders'),
        ('push_listener', 'execute on function push_listener.is_alive(integer)')
      ) as meant (role, privileges)
    union all
    -- Made by 0013.
    select 'push_listener', 'select, update (part, lowered_at) on push_listener.rate'
      where pg_catalog.to_regclass('push_listener.rate') is not null
    union all
    select 'authenticated', pg_catalog.format('select on public.%I', relation)
      from pg_catalog.unnest(array['push_notifications', 'push_delivery_logs', 'push_devices']) relation
      where not push_listener.adopted(relation)
    union all
    -- A table that was adopted may number its rows with a sequence, which takes a privilege of its own.
    select distinct r.rolname::text, pg_catalog.format('usage on sequence %s', s.oid::regclass)
      from push_listener.guarded() t
      join pg_catalog.pg_attrdef def on def.adrelid = t.relation
      join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_attrdef'::regclass and d.objid = def.oid
                                     and d.refclassid = 'pg_catalog.pg_class'::regclass
      join pg_catalog.pg_class s on s.oid = d.refobjid and s.relkind = 'S'
      join pg_catalog.pg_roles r on r.rolname = 'service_role'
        or r.rolname = 'push_listener' and t.relation = 'public.push_delivery_logs'::regclass
        or exists (
          select from push_listener.before k
            where k.kind = 'keep' and k.name = r.rolname || ' insert'
              and t.relation = pg_catalog.format('public.%I', k.relation)::regclass)
  loop
    if exists (select from pg_catalog.pg_roles where rolname = given.role) then
      execute pg_catalog.format('grant %s to %I', given.privileges, given.role);
    end if;
  end loop;
  for given in
    select k.definition as statement from push_listener.before k
      where k.kind = 'keep'
        and exists (select from pg_catalog.pg_roles r where r.rolname = pg_catalog.split_part(k.name, ' ', 1))
  loop
    execute given.statement;
  end loop;
  if exists (select from pg_catalog.pg_roles where rolname = 'push_listener')
     and not pg_catalog.has_schema_privilege('push_listener', 'public', 'usage') then
    grant usage on schema public to push_listener;
  end if;

  -- Policies of ours. Where row-level security is off, the application has decided so.
  for object in
    select p.polname, p.polrelid::regclass as relation from pg_catalog.pg_policy p
      join push_listener.guarded() g on g.relation = p.polrelid
      where pg_catalog.starts_with(p.polname, 'push_listener_')
  loop
    execute pg_catalog.format('drop policy %I on %s', object.polname, object.relation);
  end loop;
  own_readers := exists (
    select from pg_catalog.pg_policy p
      join pg_catalog.pg_class c on c.oid = p.polrelid and c.relrowsecurity
      join pg_catalog.pg_roles r on r.rolname = 'authenticated'
      cross join lateral pg_catalog.unnest(p.polroles) for_role
      where c.oid = 'public.push_notifications'::regclass and p.polpermissive and p.polcmd in ('r', '*')
        and (for_role = 0 or pg_catalog.pg_has_role(r.oid, for_role, 'usage')));
  for given in
    select p.*
      from (values
        ('push_notifications', 'push_listener_claims', 'select', 'push_listener', 'using (true)'),
        ('push_notifications', 'push_listener_settles', 'update', 'push_listener', 'using (true) with check (true)'),
        ('push_delivery_logs', 'push_listener_reads', 'select', 'push_listener', 'using (true)'),
        ('push_delivery_logs', 'push_listener_logs', 'insert', 'push_listener', 'with check (true)'),
        ('push_devices', 'push_listener_reads', 'select', 'push_listener', 'using (true)'),
        ('push_recipients', 'push_listener_reads', 'select', 'push_listener', 'using (true)'), -- if it is a table
        ('push_notifications', 'push_listener_own', 'select', 'authenticated',
         'using (user_id = (select auth.uid()))'),
        ('push_delivery_logs', 'push_listener_own', 'select', 'authenticated', case
           -- Whoever may see a push sees its logs.
           when own_readers then 'using (exists (select from public.push_notifications p where p.id = push_delivery_logs.push_id))'
           -- An array, so that the logs are found by their index and not read from end to end.
           else 'using (push_id = any (array(select p.id from public.push_notifications p '
                'where p.user_id = (select auth.uid()))))' end),
        -- As the index push_devices_live has it.
        ('push_devices', 'push_listener_own', 'select', 'authenticated',
         'using (user_id = (select auth.uid()) and disabled_at is null)')
      ) as p (relation, name, command, role, condition)
      join pg_catalog.pg_class c
        on c.relname = p.relation and c.relnamespace = 'public'::regnamespace and c.relrowsecurity
      join pg_catalog.pg_roles r on r.rolname = p.role
      where p.role <> 'authenticated'
         or can_tell_users and not exists (
              -- The application's own policy says who reads what; a second one would be asked as well, each time.
              select from pg_catalog.pg_policy own, pg_catalog.unnest(own.polroles) for_role
                where own.polrelid = c.oid and own.polpermissive and own.polcmd in ('r', '*')
                  and (for_role = 0 or pg_catalog.pg_has_role(r.oid, for_role, 'usage')))
  loop
    execute pg_catalog.format('create policy %I on public.%I for %s to %I %s',
                              given.name, given.relation, given.command, given.role, given.condition);
  end loop;

  -- Users of an adopted queue.
  drop trigger if exists push_listener_begin_as_new on public.push_notifications;
  if exists (
    select from push_listener.before where kind = 'keep' and relation = 'push_notifications'
      and name = 'authenticated insert'
  ) then
    create trigger push_listener_begin_as_new before insert on public.push_notifications
      for each row when (
        -- A role of the application's own with the rights of authenticated is a user too; a service, or the owner, is not.
        current_user = 'anon' or (pg_catalog.pg_has_role('authenticated', 'usage')
          and not pg_catalog.has_function_privilege('public.fetch_pending_pushes(integer)', 'execute')))
      execute function push_listener.begin_as_new();
  end if;
  if exists (
    select from push_listener.before where kind = 'keep' and relation = 'push_notifications'
      and name = 'authenticated delete'
  ) and exists (select from pg_catalog.pg_roles where rolname = 'authenticated') then
    create policy push_listener_finished_only on public.push_notifications as restrictive
      for delete to authenticated using (next_attempt_at is null);
  end if;

  -- What is not as it should be, and is not ours to change.
  if not can_tell_users then
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
  -- A view that reads with the rights of whoever asks asks for rights on what it reads.
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
  'Sets every privilege and policy of push-listener''s tables, and is right again after each call.';

select push_listener.secure();
