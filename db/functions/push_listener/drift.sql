-- revision 2
-- The role push_listener may call this, and it reads the adoption record with its owner's rights.
create or replace function push_listener.drift()
  returns table (finding text, statement text)
  language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select pg_catalog.format('%s %s %s%s on %s', case c.role when 'public' then 'everybody' else c.role end,
           case when c.is_extra then 'may' else 'may not' end, c.privilege, ' (' || c.columns || ')', c.object),
         case
           -- Only the role that passed a privilege on can revoke it. The owner revokes its grant option.
           when c.grantor is not null then pg_catalog.format('revoke grant option for %s%s on %s %s from %I cascade',
             c.privilege, ' (' || c.columns || ')', c.kind, c.object, c.grantor)
           when c.is_extra then pg_catalog.format('revoke %s%s on %s %s from %s cascade',
             c.privilege, ' (' || c.columns || ')', c.kind, c.object,
             case c.role when 'public' then c.role else pg_catalog.quote_ident(c.role) end)
           else pg_catalog.format('grant %s%s on %s %s to %I',
             c.privilege, ' (' || c.columns || ')', c.kind, c.object, c.role) end
    from push_listener.privilege_changes() c
  union all
  -- Many close the schema public to PUBLIC, so the role gets a privilege of its own, if this owner may grant it.
  select 'the role push_listener may not use the schema public', 'grant usage on schema public to push_listener'
    from pg_catalog.pg_namespace n
    join pg_catalog.pg_roles r on r.rolname = 'push_listener'
    where n.nspname = 'public' and pg_catalog.has_schema_privilege(n.oid, 'usage with grant option')
      and not exists (select from pg_catalog.aclexplode(n.nspacl) a
                        where a.grantee = r.oid and a.privilege_type = 'USAGE')
  union all
  select pg_catalog.format('row-level security is off on %I.%I', t.schema, c.relname),
         pg_catalog.format('alter table %I.%I enable row level security', t.schema, c.relname)
    from (values ('public', 'push_notifications'), ('public', 'push_delivery_logs'), ('public', 'push_devices'),
                 ('public', 'telemetry_logs'), ('push_listener', 'actions')) t(schema, relation)
    join pg_catalog.pg_namespace n on n.nspname = t.schema
    join pg_catalog.pg_class c on c.relname = t.relation and c.relnamespace = n.oid
    where not c.relrowsecurity and not push_listener.adopted(c.relname)
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
    from push_listener.policy_changes() p
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
          on g.tgname = meant.name and g.tgrelid = pg_catalog.to_regclass('public.push_notifications')
    ) t
    where t.there <> (t.condition is not null) or t.there and t.mark is distinct from t.condition
  union all
  select pg_catalog.format('the function %s has lost its search_path', p.oid::regprocedure),
         pg_catalog.format('alter function %s set search_path = pg_catalog, pg_temp', p.oid::regprocedure)
    from pg_catalog.pg_proc p
    where (p.pronamespace = 'push_listener'::regnamespace
           or p.oid in (select pg_catalog.to_regprocedure(a.function) from push_listener.api() a)
              and not (p.proname = 'push_disable_token' and exists (
                select from push_listener.adoption_record b where b.kind = 'function' and b.relation = 'push_disable_token')))
      and coalesce(p.proconfig, '{}') @> '{"search_path=pg_catalog, pg_temp"}' is not true
$$;
revoke all on function push_listener.drift from public;
comment on function push_listener.drift is
  'What differs from the privileges, policies and settings that push-listener sets, in words, and the statement that corrects it.';
