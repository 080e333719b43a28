-- revision 1
-- The rescue (listener/postgres/sql/rescue.sql) calls this for each row after it has locked the row of that worker. A
-- volatile function that is not inlined reads the locks anew at each call; a join might have read them earlier.
create or replace function push_listener.is_alive(worker integer) returns boolean
  language sql volatile set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from push_listener.lock_holders h
      where h.lock = 'liveness' and h.key = worker and h.granted and h.is_ours)
$$;
revoke all on function push_listener.is_alive from public;
comment on function push_listener.is_alive is
  'Whether a session that may be a worker of push-listener holds the liveness lock of that worker.';
