-- Gives this worker back the rows whose results a trigger of the application has changed, so that it can write other
-- results. A row that a worker has claimed since is left alone.
update public.push_notifications p
  set status = 'processing', delivery_attempts = r.attempt, updated_at = pg_catalog.now(),
      next_attempt_at = pg_catalog.now() + pg_catalog.make_interval(secs => %(lease)s)
  from unnest(%(ids)s::uuid[], %(attempts)s::integer[]) as r(id, attempt)
  where p.id = r.id and p.claimed_by = %(worker)s and p.status::text in ('pending', 'failed')
