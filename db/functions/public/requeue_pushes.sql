-- revision 2
create or replace function public.requeue_pushes(
  p_ids uuid[] default null,
  p_error_code text default null,
  p_since timestamptz default null,
  p_limit integer default 1000,
  p_status text default null,
  p_user_id uuid default null,
  p_until timestamptz default null
) returns integer
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_custom_plan -- which index serves depends on what is given
as $$
declare
  v_count integer;
  v_problem text := case
    when pg_catalog.num_nonnulls(p_ids, p_error_code, p_since, p_until, p_status, p_user_id) = 0
      then 'say which pushes: set p_ids, p_error_code, p_since, p_until, p_status or p_user_id'
    when pg_catalog.cardinality(p_ids) > 10000 then 'p_ids must have no more than 10000 elements'
    when p_status not in ('dead', 'expired', 'failed', 'cancelled')
      then 'p_status must be dead, expired, failed or cancelled: no other push can be put back'
    when p_limit is null or p_limit not between 1 and 10000 then 'p_limit must be from 1 to 10000' end;
begin
  perform push_listener.refuse_users();
  if v_problem is not null then
    raise exception using errcode = 'invalid_parameter_value', message = v_problem;
  end if;

  with chosen as materialized (
    select p.id
      from public.push_notifications p
      where (p.status in ('dead', 'expired', 'failed', 'cancelled')
             -- A push whose result could not be written: only a person who names it takes the risk of a second push.
             or p.id = any (p_ids) and p.id in (select u.push_id from push_listener.unwritable_rows u))
        and (p_ids is null or p.id = any (p_ids))
        and (p_error_code is null or p.error_code = p_error_code)
        and (p_since is null or p.updated_at >= p_since)
        and (p_until is null or p.updated_at <= p_until)
        and (p_status is null or p.status = p_status)
        and (p_user_id is null or p.user_id = p_user_id)
        and (p.expires_at is null or p.expires_at > now())
      order by p.updated_at
      limit p_limit
      for no key update skip locked
  ), writable as (
    delete from push_listener.unwritable_rows u using chosen c where u.push_id = c.id
  )
  update public.push_notifications p
    set status = 'pending', next_attempt_at = now(), retry_count = 0, lost_claims = 0, push_first_due_at = null,
        updated_at = now()
    from chosen c
    where p.id = c.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
revoke all on function public.requeue_pushes(uuid[], text, timestamptz, integer, text, uuid, timestamptz) from public;
comment on function public.requeue_pushes(uuid[], text, timestamptz, integer, text, uuid, timestamptz) is
  'Puts pushes that are dead, expired, failed or cancelled back in the queue, with all tries again, those longest in that state first. Returns how many. Pushes past their expires_at are left out. A push whose result could not be written (push_listener.unwritable_rows) is put back only if p_ids names it: it may have been sent.';
