-- revision 1
-- A service is a role with the rights of the owner or of service_role. Any other role that has the rights of anon or
-- authenticated is a user, whatever else has been granted to it. The roles that remain are logins of other services:
-- such a role is a service if execute on fetch_pending_pushes has been granted to it by name, and not only to PUBLIC.
--
-- The function is in public because enqueue_push and cancel_push call it with the rights of their caller.
create or replace function public.push_is_service(p_role name) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select case
    when pg_catalog.pg_has_role(p_role, p.proowner, 'usage') then true
    when exists (select from pg_catalog.pg_roles r
                   where r.rolname = 'service_role' and pg_catalog.pg_has_role(p_role, r.oid, 'usage')) then true
    when exists (select from pg_catalog.pg_roles r
                   where r.rolname in ('anon', 'authenticated') and pg_catalog.pg_has_role(p_role, r.oid, 'usage')) then false
    else exists (select from pg_catalog.aclexplode(p.proacl) a
                   where a.privilege_type = 'EXECUTE' and a.grantee <> 0
                     and pg_catalog.pg_has_role(p_role, a.grantee, 'usage')) end
    from pg_catalog.pg_proc p
    where p.oid = pg_catalog.to_regprocedure('public.fetch_pending_pushes(integer)')
$$;
revoke all on function public.push_is_service(name) from public;
comment on function public.push_is_service(name) is
  'Whether push-listener treats a role as a service (the server of an application) and not as a user.';
