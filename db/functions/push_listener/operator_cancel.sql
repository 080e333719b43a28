-- revision 1
create or replace function push_listener.operator_cancel(
  p_ids uuid[],
  p_until timestamptz,
  p_who text,
  p_reason text,
  p_filter jsonb,
  p_run uuid
) returns uuid[]
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids uuid[];
begin
  perform push_listener.check_action(p_who, p_reason, p_filter, p_ids);
  with chosen as materialized (
    select p.id
      from public.push_notifications p
      where p.id = any (p_ids) and p.status in ('pending', 'failed')
        and (p_until is null or p.updated_at <= p_until)
      for no key update skip locked
  ), changed as (
    update public.push_notifications p
      set status = 'cancelled', next_attempt_at = null, updated_at = now()
      from chosen c
      where p.id = c.id
      returning p.id
  )
  select coalesce(pg_catalog.array_agg(c.id), '{}') into v_ids from changed c;
  if v_ids <> '{}' then
    insert into push_listener.actions (who, what, filter, reason, affected, ids, run)
      values (p_who, 'cancel', p_filter, p_reason, pg_catalog.cardinality(v_ids), v_ids, p_run);
  end if;
  return v_ids;
end
$$;
revoke all on function push_listener.operator_cancel from public;
comment on function push_listener.operator_cancel is
  'Cancels those of these pushes that wait in the queue and have not changed after p_until, and records it. Returns their ids. A push that is being sent, and a row that another transaction has locked, are left out.';
