-- revision 3
create or replace function push_listener.policies()
  returns table (relation regclass, name text, command text, role text, condition text)
  language sql stable rows 17 set search_path = pg_catalog, pg_temp
as $$
  -- An old push and its log may name a device that now belongs to another user, whose registration token this user must
  -- not see. So a row that names a device is shown only while the user has that device.
  with one_device(condition) as (
    select case when pg_catalog.has_column_privilege(r.oid, c.oid, 'token', 'select')
                     and pg_catalog.has_column_privilege(r.oid, c.oid, 'user_id', 'select')
                     or push_listener.shows_own_rows('push_devices')
                then '(device_token is null or device_token in (select d.token from public.push_devices d '
                     'where d.user_id = (select auth.uid())))'
                else 'device_token is null' end
      from pg_catalog.pg_class c
      left join pg_catalog.pg_roles r on r.rolname = 'authenticated'
      where c.oid = pg_catalog.to_regclass('public.push_devices')
  ), own_device(condition, of_push) as (
    -- The step "clients" adds the column fid.
    select d.condition,
           d.condition || coalesce((
             select ' and ' || pg_catalog.replace(d.condition, 'device_token', a.attname)
               from pg_catalog.pg_attribute a
               where a.attrelid = pg_catalog.to_regclass('public.push_notifications') and a.attname = 'fid'
                 and not a.attisdropped), '')
      from one_device d
  )
  select c.oid::regclass, p.name, p.command, p.role, p.condition
    from own_device cross join lateral (values
      ('push_notifications', 'push_listener_claims', 'select', 'push_listener', 'using (true)'),
      ('push_notifications', 'push_listener_settles', 'update', 'push_listener', 'using (true) with check (true)'),
      ('push_delivery_logs', 'push_listener_reads', 'select', 'push_listener', 'using (true)'),
      ('push_delivery_logs', 'push_listener_logs', 'insert', 'push_listener', 'with check (true)'),
      ('push_devices', 'push_listener_reads', 'select', 'push_listener', 'using (true)'),
      ('push_recipients', 'push_listener_reads', 'select', 'push_listener', 'using (true)'), -- if it is a table
      ('actions', 'push_listener_reads', 'select', 'push_listener', 'using (true)'),
      ('actions', 'push_listener_operators', 'select', 'push_listener_operator', 'using (true)'),
      -- service_role bypasses row-level security on Supabase, but its members elsewhere do not.
      ('push_notifications', 'push_listener_service', 'all', 'service_role', 'using (true) with check (true)'),
      ('push_delivery_logs', 'push_listener_service', 'all', 'service_role', 'using (true) with check (true)'),
      ('push_devices', 'push_listener_service', 'all', 'service_role', 'using (true) with check (true)'),
      ('telemetry_logs', 'push_listener_service', 'all', 'service_role', 'using (true) with check (true)'),
      ('push_notifications', 'push_listener_own', 'select', 'authenticated',
       'using (user_id = (select auth.uid()) and ' || own_device.of_push || ')'),
      ('push_delivery_logs', 'push_listener_own', 'select', 'authenticated', 'using (' || own_device.condition || ' and ' || case
         -- Users who see a push by the application's own policy also see its logs.
         when push_listener.shows_own_rows('push_notifications')
           -- An array lets Postgres find the logs by their index.
           then 'push_id = any (array(select p.id from public.push_notifications p '
                'where p.user_id = (select auth.uid())))'
         else 'exists (select from public.push_notifications p where p.id = push_delivery_logs.push_id)' end || ')'),
      -- The condition of the index push_devices_live.
      ('push_devices', 'push_listener_own', 'select', 'authenticated',
       'using (user_id = (select auth.uid()) and disabled_at is null)')
    ) as p (relation, name, command, role, condition)
    join pg_catalog.pg_class c
      on c.relname = p.relation
      and c.relnamespace = case p.relation when 'actions' then 'push_listener' else 'public' end::regnamespace
      -- If row-level security is off on an adopted table, that is the application's decision.
      and (c.relrowsecurity or p.relation <> 'push_recipients' and not push_listener.adopted(p.relation))
    join pg_catalog.pg_roles r on r.rolname = p.role
    where p.name <> 'push_listener_own' or push_listener.shows_own_rows(p.relation)
  union all
  select pg_catalog.to_regclass('public.push_notifications'), 'push_listener_finished_only', 'restrictive delete', 'authenticated',
         'using (next_attempt_at is null)'
    from push_listener.kept() k
    where k.relation = 'push_notifications' and k.role = 'authenticated' and k.privilege = 'delete'
      and exists (select from pg_catalog.pg_roles where rolname = 'authenticated')
$$;
revoke all on function push_listener.policies from public;
comment on function push_listener.policies is
  'The policies that the tables should have, beside those of the application.';
