-- revision 1
create or replace function public.record_delivery_receipts(p_receipts jsonb[])
  returns table (place integer, recorded boolean, error text)
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_size constant integer := pg_catalog.cardinality(p_receipts);
  v_recorded boolean[] := pg_catalog.array_fill(false, array[coalesce(v_size, 0)]);
  v_errors text[] := pg_catalog.array_fill(null::text, array[coalesce(v_size, 0)]);
  v_place integer;
  v_receipt jsonb;
  v_problem text;
begin
  if push_listener.caller_is_service() is not true and push_listener.caller_id() is null then
    raise exception using errcode = 'insufficient_privilege', message = 'receipts are taken from signed-in users only';
  end if;
  if p_receipts is null or pg_catalog.array_ndims(p_receipts) > 1 then
    raise exception using errcode = 'invalid_parameter_value', message = 'p_receipts must be an array of JSON objects';
  end if;
  if v_size > 500 then
    raise exception using errcode = 'invalid_parameter_value',
      message = pg_catalog.format('p_receipts has %s elements, and at most 500 are taken at once', v_size);
  end if;
  if pg_catalog.pg_column_size(p_receipts) > 8 * 1024 * 1024 then
    raise exception using errcode = 'PT413', message = 'p_receipts is larger than 8 MiB as jsonb',
      hint = 'Send fewer elements at once.';
  end if;

  -- Each receipt locks the row of its push until the end. In the order of their ids, so that two devices of one user do not
  -- wait for each other in a circle. What is no string is not written out: a few bytes can be a gigabyte of text.
  for v_place, v_receipt in
    select e.place, e.receipt
      from pg_catalog.unnest(p_receipts) with ordinality as e(receipt, place)
      order by case when pg_catalog.jsonb_typeof(e.receipt -> 'push_id') = 'string'
                    then pg_catalog.lower(e.receipt ->> 'push_id') end collate "C", e.place
  loop
    begin
      v_problem := push_listener.receipt_fault(v_receipt);
      if v_problem is null then
        v_recorded[v_place] := push_listener.record_receipt(
          (v_receipt ->> 'push_id')::uuid, v_receipt ->> 'device_token', v_receipt ->> 'status',
          nullif(v_receipt -> 'details', 'null'), push_listener.to_time(v_receipt ->> 'at'));
      end if;
      v_errors[v_place] := v_problem;
    exception
      when invalid_parameter_value then
        v_errors[v_place] := pg_catalog.regexp_replace(sqlerrm, '^p_', '');
      when insufficient_privilege or data_exception or integrity_constraint_violation or raise_exception
           or program_limit_exceeded or object_not_in_prerequisite_state or sqlstate 'PT404' then
        v_errors[v_place] := sqlerrm;
    end;
  end loop;
  return query
    select (e.nth - 1)::integer, e.recorded, e.error
      from unnest(v_recorded, v_errors) with ordinality as e(recorded, error, nth)
      order by e.nth;
end
$$;
revoke all on function public.record_delivery_receipts(jsonb[]) from public;
comment on function public.record_delivery_receipts(jsonb[]) is
  'Records up to 500 receipts {push_id, device_token, status, details?, at?}, each as record_delivery_receipt does. Returns one row for each, in their order: place counts from 0; recorded is false if it had been recorded before; or error: why this one was refused.';
