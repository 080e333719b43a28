-- revision 1
-- Charges a batch to its user: 50,000 records and 32 MiB an hour, both refilled evenly. Returns null if the batch is
-- accepted, and otherwise the seconds until it would be.
create or replace function push_listener.telemetry_wait(p_user uuid, p_records integer, p_bytes bigint) returns integer
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  c_records constant interval := pg_catalog.make_interval(secs => 3600.0 * p_records / 50000);
  c_bytes constant interval := pg_catalog.make_interval(secs => 3600.0 * p_bytes / (32 * 1024 * 1024));
  c_limit constant timestamptz := now() + interval '1 hour';
  v_wait interval;
begin
  perform push_listener.forget_telemetry_use();

  -- The row stays locked until the batch is stored, so concurrent batches of one user are charged one after another. A
  -- time beyond the limit was written before the clock was set back, and counts as the limit.
  insert into push_listener.telemetry_use as u (user_id, records_until, bytes_until)
    values (p_user, now() + c_records, now() + c_bytes)
    on conflict (user_id) do update
      set records_until = greatest(least(u.records_until, c_limit) + c_records, excluded.records_until),
          bytes_until = greatest(least(u.bytes_until, c_limit) + c_bytes, excluded.bytes_until)
      where greatest(least(u.records_until, c_limit) + c_records, excluded.records_until) <= c_limit
        and greatest(least(u.bytes_until, c_limit) + c_bytes, excluded.bytes_until) <= c_limit;
  if found then
    return null;
  end if;
  select greatest(least(u.records_until, c_limit) + c_records, least(u.bytes_until, c_limit) + c_bytes) - c_limit
    into v_wait
    from push_listener.telemetry_use u
    where u.user_id = p_user;
  return pg_catalog.ceil(extract(epoch from v_wait))::integer;
end
$$;
revoke all on function push_listener.telemetry_wait from public;
