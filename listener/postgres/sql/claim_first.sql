-- Locks the row that a claim of one row would take.
select id
  from public.push_notifications
  where next_attempt_at <= pg_catalog.now()
    and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
    and id <> all(%(excluded)s::uuid[])
  order by (case priority::text when 'high' then 0 else 1 end), next_attempt_at
  limit 1
  for update skip locked
