-- revision 1
-- The user who makes the request. auth.uid() is looked up at each call, because a plain Postgres has no schema
-- auth, or gets one later.
create or replace function push_listener.caller_id() returns uuid
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  if push_listener.trusts(pg_catalog.to_regprocedure('auth.uid()')) is not true then
    return null;
  end if;
  return auth.uid();
end
$$;
revoke all on function push_listener.caller_id from public;
