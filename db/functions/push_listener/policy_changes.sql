-- revision 2
create or replace function push_listener.policy_changes()
  returns table (relation regclass, name text, command text, role text, condition text, there boolean)
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  with meant as materialized (
    select * from push_listener.policies()
  )
  select p.relation, p.name, m.command, m.role, m.condition, p.there
    from (
      select own.polrelid::regclass as relation, own.polname::text as name, true as there,
             pg_catalog.obj_description(own.oid, 'pg_policy') as mark
        from pg_catalog.pg_policy own
        where pg_catalog.starts_with(own.polname, 'push_listener_')
          and (own.polrelid in (select g.relation from push_listener.guarded() g)
               or own.polrelid = pg_catalog.to_regclass('push_listener.actions'))
      union
      select m.relation, m.name, false, null from meant m
        where not exists (select from pg_catalog.pg_policy own where own.polrelid = m.relation and own.polname = m.name)
    ) p
    left join meant m on m.relation = p.relation and m.name = p.name
    where m.condition is null or not p.there
      or p.mark is distinct from push_listener.policy_mark(p.relation, p.name, m.condition)
$$;
revoke all on function push_listener.policy_changes from public;
comment on function push_listener.policy_changes is
  'The policies of push-listener that are missing, changed, or should not be there (condition is null).';
