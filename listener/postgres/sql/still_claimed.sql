-- The rows among these that hold what a claim has written, after triggers of the application have run.
--
-- coalesce() keeps Postgres from reading all claimed rows by the index of due rows, once for each of these.
select p.id
  from unnest(%(ids)s::uuid[], %(attempts)s::integer[]) as c(id, attempt)
  join public.push_notifications p on p.id = c.id
  where p.status::text = 'processing' and p.claimed_by = %(worker)s and p.delivery_attempts = c.attempt
    and coalesce(p.next_attempt_at > pg_catalog.now(), false)
