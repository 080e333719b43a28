-- revision 1
-- Functions for the application's server call this first, so a privilege granted by mistake does not let users in.
create or replace function push_listener.refuse_users() returns void
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  if push_listener.caller_is_service() is not true then
    raise exception using errcode = 'insufficient_privilege',
      message = pg_catalog.format('%s may not call this function: it is for the application''s server',
                                  push_listener.caller());
  end if;
end
$$;
revoke all on function push_listener.refuse_users from public;
