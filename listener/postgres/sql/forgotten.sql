-- The rows that a claim takes: those whose last claim Postgres has forgotten in a crash. They are as they were before
-- it, and this worker has the results. A row that another worker has claimed since is left to it. See fates.sql.
--
-- Whether the row is due does not matter: the clock may have been set back, and the push has been sent. The commit of
-- this claim waits for the disk.
due as materialized (
  select p.id, p.next_attempt_at as due_at, (case p.priority::text when 'high' then 0 else 1 end) as lane,
         c.attempt
    from unnest(%(ids)s::uuid[], %(attempts)s::integer[]) as c(id, attempt)
    join public.push_notifications p on p.id = c.id
    where coalesce(p.delivery_attempts, 0) = c.attempt - 1 and p.next_attempt_at is not null
      and p.status::text in ('pending', 'processing', 'failed')
      and (c.attempt > 1 or p.claimed_by is distinct from %(worker)s)
    for no key update of p skip locked
)
