-- Ends the leases of rows whose worker is dead, or of rows that this worker has claimed without knowing.
--
-- If %(only_end_leases)s, a row keeps its status: an index or a trigger of the application may refuse to let it be
-- 'pending' again. The next claim counts the lost claim then.
--
-- Rows of dead workers go to the front of the queue: if one of them killed the worker, it is tried again soon, with few
-- others.
update public.push_notifications p
  set status = case when %(only_end_leases)s then p.status else 'pending' end,
      next_attempt_at = case when %(are_lost)s then least(p.created_at, pg_catalog.now()) else pg_catalog.now() end,
      lost_claims = coalesce(p.lost_claims, 0) + case when %(are_lost)s and not %(only_end_leases)s then 1 else 0 end,
      updated_at = pg_catalog.now()
  where p.id = any(%(ids)s::uuid[])
