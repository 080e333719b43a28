-- Whether another worker holds a claimed row.
--
-- A claimed row is due when its lease ends, so the scan of the index starts after all rows that are due, however many
-- they are. It goes backwards from the end of the lease, which is longer than the delay of most retries.
select exists (
  (select from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 0 and next_attempt_at > pg_catalog.now()
       and next_attempt_at <= pg_catalog.now() + pg_catalog.make_interval(secs => %(lease)s)
       and status::text = 'processing' and claimed_by <> %(worker)s
     order by next_attempt_at desc limit 1)
  union all
  (select from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at > pg_catalog.now()
       and next_attempt_at <= pg_catalog.now() + pg_catalog.make_interval(secs => %(lease)s)
       and status::text = 'processing' and claimed_by <> %(worker)s
     order by next_attempt_at desc limit 1))
