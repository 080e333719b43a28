-- revision 1
create or replace function push_listener.granted()
  returns table (kind text, object text, part text, role text, privilege text, grantable boolean, grantor text)
  language sql stable rows 200 set search_path = pg_catalog, pg_temp
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
revoke all on function push_listener.granted from public;
comment on function push_listener.granted is
  'Every privilege that a role other than the owner has on objects of push-listener. part: the column, or empty; grantor: the role that passed it on, null for the owner.';
