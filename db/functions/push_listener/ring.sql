-- revision 1
create or replace function push_listener.ring() returns trigger
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_catalog.pg_notify('push_listener', '');
  return null;
end
$$;
revoke all on function push_listener.ring from public;
