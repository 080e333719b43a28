-- Puts back the rows that this worker holds by the database's record but does not know of: the answer to a claim was lost.
--
-- The condition on the lane lets the scan of the index start after all rows that are due, however many they are.
update public.push_notifications
  set status = 'pending', next_attempt_at = pg_catalog.now(), updated_at = pg_catalog.now()
  where (case priority::text when 'high' then 0 else 1 end) in (0, 1) and next_attempt_at > pg_catalog.now()
    and status::text = 'processing' and claimed_by = %(worker)s and id <> all(%(held)s::uuid[])
