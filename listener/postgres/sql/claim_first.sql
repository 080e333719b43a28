-- Locks the row that a claim of one row takes. The claim follows in the same transaction.
select id
  from public.push_notifications
  where next_attempt_at <= pg_catalog.now()
    and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
    and id <> all(%(excluded)s::uuid[])
    and id not in (select u.push_id from push_listener.unwritable_rows u where u.until > pg_catalog.now())
  order by (case priority::text when 'high' then 0 else 1 end), next_attempt_at
  limit 1
  for no key update skip locked
