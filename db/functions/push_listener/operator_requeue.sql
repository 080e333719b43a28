-- revision 1
-- Changes a row as requeue_pushes does; a test compares the two. An id is named by a person, so a push whose result could
-- not be written is put back too.
create or replace function push_listener.operator_requeue(
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
      where p.id = any (p_ids)
        and (p.status in ('dead', 'expired', 'failed', 'cancelled')
             or p.id in (select u.push_id from push_listener.unwritable_rows u where u.push_id = any (p_ids)))
        and (p_until is null or p.updated_at <= p_until)
        and (p.expires_at is null or p.expires_at > now())
      for no key update skip locked
  ), writable as (
    delete from push_listener.unwritable_rows u using chosen c where u.push_id = c.id
  ), changed as (
    update public.push_notifications p
      set status = 'pending', next_attempt_at = now(), retry_count = 0, lost_claims = 0, push_first_due_at = null,
          updated_at = now()
      from chosen c
      where p.id = c.id
      returning p.id
  )
  select coalesce(pg_catalog.array_agg(c.id), '{}') into v_ids from changed c;
  if v_ids <> '{}' then
    insert into push_listener.actions (who, what, filter, reason, affected, ids, run)
      values (p_who, 'requeue', p_filter, p_reason, pg_catalog.cardinality(v_ids), v_ids, p_run);
  end if;
  return v_ids;
end
$$;
revoke all on function push_listener.operator_requeue from public;
comment on function push_listener.operator_requeue is
  'Puts those of these pushes back in the queue that are dead, expired, failed or cancelled, have not changed after p_until and are not past their expires_at, with all tries again, and records it. Returns their ids. Rows that another transaction has locked are left out.';
