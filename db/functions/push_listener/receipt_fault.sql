-- revision 1
-- What is wrong with the form of an element of record_delivery_receipts, or null. record_receipt looks at the rest.
create or replace function push_listener.receipt_fault(p_receipt jsonb) returns text
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_receipt is null or pg_catalog.jsonb_typeof(p_receipt) <> 'object' then 'this is not a JSON object'
    when exists (select from pg_catalog.jsonb_object_keys(p_receipt) k
                   where k not in ('push_id', 'device_token', 'status', 'details', 'at'))
      then 'the keys of a receipt are push_id, device_token, status, details and at'
    when pg_catalog.jsonb_typeof(p_receipt -> 'push_id') is distinct from 'string'
      or p_receipt ->> 'push_id' !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then 'push_id must be a UUID'
    when pg_catalog.jsonb_typeof(p_receipt -> 'device_token') is distinct from 'string'
      then 'device_token must be a string'
    when pg_catalog.jsonb_typeof(p_receipt -> 'status') is distinct from 'string' then 'status must be a string'
    when pg_catalog.jsonb_typeof(p_receipt -> 'at') not in ('string', 'null')
      or (p_receipt ->> 'at' is not null and push_listener.to_time(p_receipt ->> 'at') is null)
      then 'at must be a time in ISO 8601' end
$$;
revoke all on function push_listener.receipt_fault from public;
