-- revision 1
create or replace function public.requeue_pushes(
  p_ids uuid[] default null,
  p_error_code text default null,
  p_since timestamptz default null,
  p_limit integer default 1000
) returns integer
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
  v_problem text := case
    when pg_catalog.num_nonnulls(p_ids, p_error_code, p_since) = 0
      then 'say which pushes: set p_ids, p_error_code or p_since'
    when pg_catalog.cardinality(p_ids) > 10000 then 'p_ids must have no more than 10000 elements'
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
revoke all on function public.requeue_pushes(uuid[], text, timestamptz, integer) from public;
comment on function public.requeue_pushes(uuid[], text, timestamptz, integer) is
  'Puts pushes that are dead, expired, failed or cancelled back in the queue, with all tries again, those longest in that state first. Returns how many. Pushes past their expires_at are left out. A push whose result could not be written (push_listener.unwritable_rows) is put back only if p_ids names it: it may have been sent.';
