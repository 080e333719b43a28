-- revision 4
-- Workers of other projects share the queue with listeners: the same order, the same leases. Their rows have the
-- status 'processing' and no claimed_by. mark_push_sent and mark_push_failed settle only such rows. A fid is returned as
-- device_token, because FCM takes it in the field token too. Source: firebase/firebase-android-sdk, issue 8316.
--
-- A row is due from the time at which it was inserted on. clock_timestamp() lets a transaction fetch what it has inserted
-- itself, also in the same statement; now() is the time at which the transaction began.
create or replace function public.fetch_pending_pushes(p_limit integer default 100)
  returns table (id uuid, user_id uuid, device_token text, title text, body text, data jsonb, status text,
                 retry_count integer, delivery_attempts integer, created_at timestamptz)
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
<<fetching>> -- a column of the application may have the name of a variable
declare
  due_until constant timestamptz := clock_timestamp();
begin
  perform push_listener.refuse_users();
  if p_limit is null or p_limit not between 1 and 1000 then
    raise exception using errcode = 'invalid_parameter_value', message = 'p_limit must be from 1 to 1000';
  end if;

  -- Pushes past expires_at that stand first in the queue expire here; otherwise they would be read again at each call.
  with head as materialized (
    (select id, expires_at
       from public.push_notifications
       where (case priority::text when 'high' then 0 else 1 end) = 0 and next_attempt_at <= fetching.due_until
         and next_attempt_at is not null and status in ('pending', 'processing', 'failed')
       order by next_attempt_at
       limit 1000)
    union all
    (select id, expires_at
       from public.push_notifications
       where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at <= fetching.due_until
         and next_attempt_at is not null and status in ('pending', 'processing', 'failed')
       order by next_attempt_at
       limit 1000)
  ), over as materialized (
    select p.id
      from head h
      join public.push_notifications p on p.id = h.id
      where h.expires_at <= now()
        and p.expires_at <= now() and p.next_attempt_at <= fetching.due_until and p.status in ('pending', 'processing', 'failed')
      for no key update of p skip locked
  )
  update public.push_notifications p
    set status = 'expired',
        next_attempt_at = null,
        push_first_due_at = null,
        error_code = 'EXPIRED',
        last_error = 'expires_at had passed before it could be sent',
        updated_at = now()
    from over o
    where p.id = o.id;

  -- OFFSET 0 makes Postgres search the index of unwritable rows for each due row. A join would lose the order of the due
  -- rows, and "not in" would compare each row with each as soon as the ids do not fit into work_mem.
  return query
  with high as materialized (
    select id, next_attempt_at as due_at, 0 as lane
      from public.push_notifications
      where (case priority::text when 'high' then 0 else 1 end) = 0 and next_attempt_at <= fetching.due_until
        and next_attempt_at is not null and status in ('pending', 'processing', 'failed')
        and topic is null and condition is null and (expires_at is null or expires_at > now())
        and not exists (select from push_listener.unwritable_rows u
                          where u.push_id = push_notifications.id and u.until > now() offset 0)
      order by next_attempt_at
      limit p_limit
      for no key update skip locked
  ), normal as materialized (
    select id, next_attempt_at as due_at, 1 as lane
      from public.push_notifications
      where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at <= fetching.due_until
        and next_attempt_at is not null and status in ('pending', 'processing', 'failed')
        and topic is null and condition is null and (expires_at is null or expires_at > now())
        and not exists (select from push_listener.unwritable_rows u
                          where u.push_id = push_notifications.id and u.until > now() offset 0)
      order by next_attempt_at
      limit greatest(p_limit - (select count(*) from high), 0)
      for no key update skip locked
  ), due as (
    select * from high union all select * from normal
  ), claimed as (
    update public.push_notifications p
      set status = 'processing',
          next_attempt_at = now() + interval '60 seconds',
          claimed_by = null,
          -- Both counters may be NULL in an adopted table.
          delivery_attempts = coalesce(p.delivery_attempts, 0) + 1,
          -- As the listener's claim does.
          push_first_due_at = coalesce(case when p.delivery_attempts > 0 then p.push_first_due_at end,
                                       greatest(d.due_at, p.created_at)),
          last_retry_at = case when p.retry_count > 0 then now() else p.last_retry_at end,
          updated_at = now()
      from due d
      where p.id = d.id
      returning p.id, p.user_id, coalesce(p.device_token, p.fid) as device_token, p.title, p.body, p.data, p.status, p.retry_count,
        p.delivery_attempts, p.created_at, d.lane, d.due_at
  )
  select c.id, c.user_id, c.device_token::text, c.title::text, c.body::text, c.data::jsonb, c.status::text,
         coalesce(c.retry_count, 0)::integer, c.delivery_attempts::integer, c.created_at
    from claimed c
    order by c.lane, c.due_at;
end
$$;
revoke all on function public.fetch_pending_pushes(integer) from public;
comment on function public.fetch_pending_pushes(integer) is
  'Claims due pushes with a lease of 60 s. The worker then calls mark_push_sent or mark_push_failed for each. device_token is the registration token or the installation id (fid); it is null if the push goes to every device of user_id; push_recipients lists them. Pushes to topics are left to push-listener.';
