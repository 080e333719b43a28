-- revision 1
-- Which inserts come from users: the condition of the trigger push_listener_begin_as_new, or null if no user may
-- insert. A role of the application with the rights of authenticated is a user too; a service or the owner is not.
create or replace function push_listener.user_inserts() returns text
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select pg_catalog.format(
           'current_user = ''anon'' or pg_catalog.pg_has_role(''authenticated'', ''usage'') '
           'and not pg_catalog.pg_has_role(%L, ''usage'')%s',
           (select pg_catalog.pg_get_userbyid(c.relowner) from pg_catalog.pg_class c
              where c.oid = pg_catalog.to_regclass('public.push_notifications')),
           (select ' and not pg_catalog.pg_has_role(''service_role'', ''usage'')'
              from pg_catalog.pg_roles where rolname = 'service_role'))
    where exists (select from push_listener.kept() k
                    where k.relation = 'push_notifications' and k.role = 'authenticated' and k.privilege = 'insert')
      and exists (select from pg_catalog.pg_roles where rolname = 'authenticated')
$$;
revoke all on function push_listener.user_inserts from public;
