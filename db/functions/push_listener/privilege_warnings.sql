-- revision 1
create or replace function push_listener.privilege_warnings() returns setof text
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select 'no user can read push_notifications, push_delivery_logs or push_devices, as there is no role authenticated, or '
         'no function auth.uid() that the owner may use. Nothing else needs them. Once they are there, let the owner run '
         '"select push_listener.apply_privileges()"'
    where not push_listener.can_tell_users()
  union all
  select 'the role push_listener may not use the schema public. Let the owner of that schema run '
         '"grant usage on schema public to push_listener"'
    from pg_catalog.pg_roles r
    where r.rolname = 'push_listener' and not pg_catalog.has_schema_privilege(r.oid, 'public', 'usage')
  union all
  select pg_catalog.format('restrictive policies hold for the role push_listener as well, and a listener with that role '
           'sees only what they let it see: %s. Name in them the roles that they are meant for', p.names)
    from (
      select pg_catalog.string_agg(pg_catalog.format('%I on %s', p.polname, p.polrelid::regclass), ', ') as names
        from pg_catalog.pg_policy p
        join push_listener.guarded() g on g.relation = p.polrelid
        join pg_catalog.pg_roles r on r.rolname = 'push_listener'
        cross join lateral pg_catalog.unnest(p.polroles) for_role
        where not p.polpermissive and (for_role = 0 or pg_catalog.pg_has_role(r.oid, for_role, 'usage'))
    ) p
    where p.names is not null
  union all
  -- A security_invoker view reads with the rights of the role that queries it, so that role needs rights on its tables.
  select pg_catalog.format('the role push_listener cannot read what is below the view push_recipients. Run "%s" and, where '
           'row-level security is on, create a policy for select to push_listener', c.grants)
    from (
      select pg_catalog.string_agg(pg_catalog.format(
               'grant select (%s) on %s to push_listener', c.columns, c.relation), '; ') as grants
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
        ) c
    ) c
    where c.grants is not null
$$;
revoke all on function push_listener.privilege_warnings from public;
comment on function push_listener.privilege_warnings is
  'What keeps users or the role push_listener from reading, and only the application or an administrator can change.';
