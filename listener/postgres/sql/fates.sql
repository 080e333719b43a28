-- Tells what has become of rows whose results a settle has not written.
--
-- If a settle whose answer was lost is repeated (is_retry), the row may hold the result already. If another worker has
-- claimed the row since, a log row of this attempt shows that the result was written. It shows nothing if both claims
-- have the same number: Postgres has forgotten the first claim in a crash, and the log row may be of the second.
--
-- At the first try, the status that the row has comes from others, even if it is that of the result: for example, peers
-- took this worker for dead and put the row back.
--
-- A row whose counter the application has set back to 0 still has the id of the worker, and is not as it was before
-- the claim: the application wants it to be sent once more.
select r.position, case
    when p.id is null then 'deleted'
    when p.claimed_by = %(worker)s and p.delivery_attempts = r.attempt then case
      -- A trigger of the application has taken away the time of the next try.
      when r.delay is not null and p.status::text in ('pending', 'failed')
        and (p.next_attempt_at is null or p.next_attempt_at = 'infinity'::timestamptz) then 'refused'
      when %(is_retry)s and (p.status::text = r.status or r.status = 'sent' and p.status::text = 'delivered') then 'written'
      when p.status::text = 'processing' then 'refused'
      else 'changed' end
    when coalesce(p.delivery_attempts, 0) = r.attempt - 1 and p.next_attempt_at is not null
      and p.status::text in ('pending', 'processing', 'failed')
      and (r.attempt > 1 or p.claimed_by is distinct from %(worker)s) then 'forgotten'
    -- For "exists" Postgres might read the whole log.
    when %(is_retry)s and p.delivery_attempts <> r.attempt and (
      select true from public.push_delivery_logs o
        where o.push_id = r.id and o.details ->> 'attempt'::text = r.attempt::text limit 1) then 'written'
    else 'taken' end as fate
  from unnest(%(ids)s::uuid[], %(attempts)s::integer[], %(statuses)s::text[], %(delays)s::float8[])
    with ordinality as r(id, attempt, status, delay, position)
  left join public.push_notifications p on p.id = r.id
