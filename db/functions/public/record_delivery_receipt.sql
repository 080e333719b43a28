-- revision 2
create or replace function public.record_delivery_receipt(
  p_push_id uuid, p_device_token text, p_status text, p_details jsonb default null, p_at timestamptz default null
) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return push_listener.record_receipt(p_push_id, p_device_token, p_status, p_details, p_at);
end
$$;
revoke all on function public.record_delivery_receipt(uuid, text, text, jsonb, timestamptz) from public;
comment on function public.record_delivery_receipt(uuid, text, text, jsonb, timestamptz) is
  'A device reports what became of a push to it: delivered, opened, clicked, failed or unknown, and when (p_at; now if it is null). Returns true if this is recorded, false if it had been before.';
