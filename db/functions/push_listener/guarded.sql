-- revision 1
create or replace function push_listener.guarded()
  returns table (object text, kind text, relation oid, owner oid, acl aclitem[])
  language sql stable rows 20 set search_path = pg_catalog, pg_temp
as $$
  -- Found through the indexes of the catalogue: one look at the privileges calls this several times.
  with tables as (
    select c.oid, c.relname
      from pg_catalog.pg_class c
      where c.relnamespace = 'public'::regnamespace
        and c.relname in ('push_notifications', 'push_delivery_logs', 'push_devices', 'telemetry_logs', 'push_recipients')
  ), relations as (
    select t.oid from tables t
    union
    select d.objid
      from tables t
      join pg_catalog.pg_depend d
        on d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = t.oid
           and d.classid = 'pg_catalog.pg_class'::regclass and d.deptype in ('a', 'i')
      join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S'
      where t.relname <> 'push_recipients'
  )
  select c.oid::regclass::text, case c.relkind when 'S' then 'sequence' else 'table' end, c.oid, c.relowner,
         coalesce(c.relacl, pg_catalog.acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))
    from relations r
    join pg_catalog.pg_class c on c.oid = r.oid
  union all
  select p.oid::regprocedure::text, 'function', null, p.proowner,
         coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))
    from push_listener.api() a
    join pg_catalog.pg_proc p on p.oid = pg_catalog.to_regprocedure(a.function)
$$;
revoke all on function push_listener.guarded from public;
comment on function push_listener.guarded is
  'The tables, view, sequences and functions of schema public whose privileges push-listener sets, as they are now.';
