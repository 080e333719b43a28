-- revision 2
create or replace function push_listener.privilege_changes()
  returns table (is_extra boolean, kind text, object text, role text, privilege text, grantor text, columns text)
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  with granted as materialized (
    select * from push_listener.granted()
  ), meant as materialized (
    select * from push_listener.meant()
  ), extra as (
    select g.* from granted g
      where g.role in ('public', 'anon', 'authenticated', 'service_role', 'push_listener', 'push_listener_operator')
        and (g.grantable or not exists (
          select from meant m
            where (m.kind, m.object, m.part, m.role, m.privilege) = (g.kind, g.object, g.part, g.role, g.privilege)))
        and not exists (
          select from push_listener.kept() k
            where not g.grantable and g.object = 'public.' || k.relation and g.role = k.role and g.privilege = k.privilege
              and (k.columns is null or g.part = any (k.columns)))
        -- The application grants privileges on its own columns.
        and not (not g.grantable and g.part <> '' and g.privilege <> 'references' and exists (
          select from push_listener.adoption_record b
            where b.kind = 'table' and g.object = 'public.' || b.relation
              and g.part <> all (push_listener.columns(b.relation))))
  ), missing as (
    select m.* from meant m
      where not exists (
        select from granted g
          where (g.kind, g.object, g.part, g.role, g.privilege) = (m.kind, m.object, m.part, m.role, m.privilege))
  )
  select true, e.kind, e.object, e.role, e.privilege, e.grantor,
         pg_catalog.string_agg(pg_catalog.quote_ident(nullif(e.part, '')), ', ' order by e.part)
    from extra e
    group by e.kind, e.object, e.role, e.privilege, e.grantor, e.part = ''
  union all
  select false, m.kind, m.object, m.role, m.privilege, null,
         pg_catalog.string_agg(pg_catalog.quote_ident(nullif(m.part, '')), ', ' order by m.part)
    from missing m
    group by m.kind, m.object, m.role, m.privilege, m.part = ''
$$;
revoke all on function push_listener.privilege_changes from public;
comment on function push_listener.privilege_changes is
  'The privileges that have to be revoked (is_extra) or granted, so that each role has what push-listener means it to have.';
