-- revision 1
-- Our functions call auth.uid() with our owner's rights. On a plain Postgres, any role that may create schemas could
-- create a function of that name. We trust the function if its owner could do the same without it: a superuser, the
-- owner of the database, a role with our owner's rights, or Supabase's own role for it.
create or replace function push_listener.trusts(p_function regprocedure) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select r.rolsuper or r.rolname = 'supabase_auth_admin' or d.datdba = r.oid
         or pg_catalog.pg_has_role(r.oid, c.relowner, 'usage')
    from pg_catalog.pg_proc p
    join pg_catalog.pg_roles r on r.oid = p.proowner
    join pg_catalog.pg_database d on d.datname = pg_catalog.current_database()
    join pg_catalog.pg_class c on c.oid = pg_catalog.to_regclass('public.push_notifications')
    where p.oid = p_function
$$;
revoke all on function push_listener.trusts from public;
