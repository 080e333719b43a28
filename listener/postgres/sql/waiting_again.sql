-- The rows among these, just settled as sent, dead or expired, that wait in the queue again although nobody claimed them:
-- a trigger of the application has changed the result.
select p.id
  from unnest(%(ids)s::uuid[], %(attempts)s::integer[]) as c(id, attempt)
  join public.push_notifications p on p.id = c.id
  where p.claimed_by = %(worker)s and p.delivery_attempts = c.attempt
    and p.status::text in ('pending', 'processing', 'failed')
