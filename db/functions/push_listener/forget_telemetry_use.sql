-- revision 2
-- One call in a hundred deletes rows of push_listener.telemetry_use that no longer matter, and batch ids that are older
-- than seven days. SKIP LOCKED, so that no caller waits for another transaction.
create or replace function push_listener.forget_telemetry_use() returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_catalog.random() < 0.01 then
    delete from push_listener.telemetry_use u
      where u.user_id in (
        select o.user_id from push_listener.telemetry_use o
          where o.records_until < now() and o.bytes_until < now()
          limit 1000
          for update skip locked);
    delete from push_listener.telemetry_batches b
      where (b.user_id, b.batch_id) in (
        select o.user_id, o.batch_id from push_listener.telemetry_batches o
          where o.stored_at < now() - interval '7 days'
          limit 1000
          for update skip locked);
  end if;
end
$$;
revoke all on function push_listener.forget_telemetry_use from public;
