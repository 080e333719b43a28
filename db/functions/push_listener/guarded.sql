-- revision 1
create or replace function push_listener.guarded()
  returns table (object text, kind text, relation oid, owner oid, acl aclitem[])
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select c.oid::regclass::text, case c.relkind when 'S' then 'sequence' else 'table' end, c.oid, c.relowner,
         coalesce(c.relacl, pg_catalog.acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))
    from pg_catalog.pg_class c
    where c.oid in (pg_catalog.to_regclass('public.push_notifications'), pg_catalog.to_regclass('public.push_delivery_logs'),
                    pg_catalog.to_regclass('public.push_devices'), pg_catalog.to_regclass('public.telemetry_logs'),
                    pg_catalog.to_regclass('public.push_recipients'))
       or c.relkind = 'S' and exists (
            select from pg_catalog.pg_depend d
              where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i')
                and d.refclassid = 'pg_catalog.pg_class'::regclass
                and d.refobjid in (pg_catalog.to_regclass('public.push_notifications'), pg_catalog.to_regclass('public.push_delivery_logs'),
                                   pg_catalog.to_regclass('public.push_devices'), pg_catalog.to_regclass('public.telemetry_logs')))
  union all
  select p.oid::regprocedure::text, 'function', null, p.proowner,
         coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))
    from push_listener.api() a
    join pg_catalog.pg_proc p on p.oid = pg_catalog.to_regprocedure(a.function)
$$;
revoke all on function push_listener.guarded from public;
comment on function push_listener.guarded is
  'The tables, view, sequences and functions of schema public whose privileges push-listener sets, as they are now.';
