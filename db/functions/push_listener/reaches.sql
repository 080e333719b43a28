-- revision 1
-- A role can inherit a privilege from one role and a policy from another: a role of the application with the rights
-- of authenticated that a policy names, or a role that is a member of both.
create or replace function push_listener.reaches(policy_role oid, grantee oid) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select policy_role = 0 or exists (
    select from pg_catalog.pg_roles r
      where not r.rolsuper and not r.rolbypassrls
        and pg_catalog.pg_has_role(r.oid, policy_role, 'usage') and pg_catalog.pg_has_role(r.oid, grantee, 'usage'))
$$;
revoke all on function push_listener.reaches from public;
comment on function push_listener.reaches is
  'Whether a policy for one role applies to some role with the rights of another; policy_role 0 stands for every role.';
