-- revision 1
-- Whether a policy of ours shows users their own rows of a table. If the application has a policy for users, that
-- policy decides instead. Ours also stays away if it would open columns of the application, which no policy had
-- opened, to a role that may read them.
create or replace function push_listener.shows_own_rows(p_relation text) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select push_listener.can_tell_users()
    and not exists (
      select from pg_catalog.pg_policy own, pg_catalog.unnest(own.polroles) for_role
        where own.polrelid = c.oid and own.polpermissive and own.polcmd in ('r', '*')
          and not pg_catalog.starts_with(own.polname, 'push_listener_')
          and push_listener.reaches(for_role, pg_catalog.to_regrole('authenticated')))
    and not exists (
      select from push_listener.adoption_record b
        join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = b.name and not a.attisdropped
        join pg_catalog.pg_roles r on pg_catalog.pg_has_role(r.oid, 'authenticated', 'usage')
          and not r.rolsuper and not r.rolbypassrls and not pg_catalog.pg_has_role(r.oid, c.relowner, 'usage')
        where b.kind = 'column' and b.relation = p_relation
          and pg_catalog.has_column_privilege(r.oid, c.oid, a.attnum, 'select'))
    from pg_catalog.pg_class c
    where c.relname = p_relation and c.relnamespace = 'public'::regnamespace
      and (c.relrowsecurity or not push_listener.adopted(p_relation))
$$;
revoke all on function push_listener.shows_own_rows from public;
