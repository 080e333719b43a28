-- revision 1
-- In a function that runs with its owner's rights, current_user is the owner. The caller is the role that was set
-- (PostgREST sets one for each request), or else the role that logged in.
create or replace function push_listener.caller() returns name
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select case when pg_catalog.current_setting('role', true) in ('none', '') then session_user
              else coalesce(pg_catalog.current_setting('role', true)::name, session_user) end
$$;
revoke all on function push_listener.caller from public;
