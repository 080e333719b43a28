-- revision 1
-- What is wrong with the arguments of record_delivery_receipt, or null.
create or replace function push_listener.receipt_problem(
  p_push_id uuid, p_device_token text, p_status text, p_details jsonb
) returns text
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when p_push_id is null then 'p_push_id must not be null'
    when p_device_token is null or pg_catalog.length(p_device_token) not between 1 and 4096
      then 'p_device_token must be the registration token of the device'
    when p_status is null or p_status not in ('delivered', 'opened', 'clicked', 'failed', 'unknown')
      then 'p_status must be delivered, opened, clicked, failed or unknown'
    when p_details is null then null
    when pg_catalog.jsonb_typeof(p_details) <> 'object' then 'p_details must be a JSON object'
    else 'p_details: ' || push_listener.json_problem(p_details, 2048) end;
end
$$;
revoke all on function push_listener.receipt_problem from public;
