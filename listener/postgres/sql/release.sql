-- Locks the rows that this worker holds in the database but does not know of, because the answer to a claim was lost.
--
-- The condition on the lane lets the scan of the index start after all rows that are due, however many they are.
--
-- A worker may hold a hundred thousand rows. For "not in", Postgres makes a hash table of them, whatever plan it has;
-- with "<> all" it would compare every row with every other.
--
-- A row that another transaction has locked is passed over. It waits for the end of its lease.
select id
  from public.push_notifications
  where (case priority::text when 'high' then 0 else 1 end) in (0, 1) and next_attempt_at > pg_catalog.now()
    and status::text = 'processing' and claimed_by = %(worker)s
    and id not in (select pg_catalog.unnest(%(held)s::uuid[]))
    and pg_catalog.set_config('lock_timeout', '200ms', true) is not null
  for no key update skip locked
