-- revision 1
create or replace function push_listener.store_telemetry(p_payloads jsonb[], p_batch uuid, p_user uuid) returns void
  language sql set search_path = pg_catalog, pg_temp
as $$
  insert into public.telemetry_logs (type, message, meta, "timestamp", user_id, batch_id, processed_at, created_at)
    select e ->> 'type', e ->> 'message', nullif(e -> 'meta', 'null'),
           coalesce(push_listener.to_time(e ->> 'timestamp'), now()), coalesce(p_user, (e ->> 'user_id')::uuid),
           p_batch, now(), now()
      from pg_catalog.unnest(p_payloads) as e
$$;
revoke all on function push_listener.store_telemetry from public;
