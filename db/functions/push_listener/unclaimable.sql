-- revision 1
-- Finds due rows that cannot be claimed: it claims each by itself and undoes that, so one call finds many.
--
-- Triggers of the application must run with the search_path of the session, which p_search_path names. So every name
-- below has its schema, and every operator has operands for which pg_catalog has exactly that operator.
--
-- OFFSET 0: see fetch_pending_pushes.
create or replace function push_listener.unclaimable(
  p_worker integer,
  p_excluded uuid[],
  p_limit integer,
  p_seconds double precision,
  p_search_path text
) returns table (push_id uuid, code text)
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_id uuid;
  v_until timestamptz := pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => p_seconds);
begin
  perform pg_catalog.set_config('lock_timeout', '20ms', true), pg_catalog.set_config('search_path', p_search_path, true);
  for v_id in
    select p.id
      from public.push_notifications p
      where p.next_attempt_at <= pg_catalog.now()
        and p.next_attempt_at is not null and p.status::text in ('pending', 'processing', 'failed')
        and p.id <> all(p_excluded)
        and not exists (select from push_listener.unwritable_rows u
                          where u.push_id = p.id and u.until > pg_catalog.now() offset 0)
      order by (case p.priority::text when 'high' then 0 else 1 end), p.next_attempt_at
      limit p_limit
      for no key update skip locked
  loop
    exit when pg_catalog.clock_timestamp() >= v_until;
    begin
      update public.push_notifications p
        set status = 'processing',
            next_attempt_at = pg_catalog.now() + pg_catalog.make_interval(mins => 1),
            claimed_by = p_worker,
            delivery_attempts = coalesce(p.delivery_attempts, 0) + 1,
            updated_at = pg_catalog.now()
        where p.id = v_id;
      set constraints all immediate;
      raise exception using errcode = 'PL000'; -- undoes the claim
    exception
      when sqlstate 'PL000' then null;
      when others then
        push_id := v_id;
        code := sqlstate;
        return next;
    end;
  end loop;
end
$$;
revoke all on function push_listener.unclaimable from public;
comment on function push_listener.unclaimable is
  'Due rows that a trigger, an index, a constraint or a lock of the application does not let be claimed, with the SQLSTATE; for push-listener only.';
