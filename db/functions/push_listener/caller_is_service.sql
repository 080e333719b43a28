-- revision 1
create or replace function push_listener.caller_is_service() returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select public.push_is_service(push_listener.caller())
$$;
revoke all on function push_listener.caller_is_service from public;
