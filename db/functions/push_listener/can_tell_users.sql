-- revision 1
create or replace function push_listener.can_tell_users() returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select exists (select from pg_catalog.pg_roles where rolname = 'authenticated')
    and case when pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('auth'), 'usage')
             then push_listener.trusts(pg_catalog.to_regprocedure('auth.uid()')) end is true
$$;
revoke all on function push_listener.can_tell_users from public;
comment on function push_listener.can_tell_users is
  'Whether users can be told apart: there is a role authenticated, and a function auth.uid() that the owner may use and trusts.';
