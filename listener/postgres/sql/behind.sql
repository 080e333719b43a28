-- Due rows that lie before where claims begin, a thousand of each lane at most; see frontier.py. They are in no order, so
-- that a bitmap can be used: with a million entries in the way that takes 0.4 of the CPU time, because the entries of
-- claims and leases alternate, and lead to other pages each.
-- OFFSET 0: see due.sql.
select id from (
  (select id
     from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 0
       and next_attempt_at >= pg_catalog.to_timestamp(%(from)s::float8)
       and next_attempt_at < pg_catalog.to_timestamp(%(to_high)s::float8)
       and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
       and id <> all(%(excluded)s::uuid[])
       and not exists (select from push_listener.unwritable_rows u
                         where u.push_id = push_notifications.id and u.until > pg_catalog.now() offset 0)
     limit 1000)
  union all
  (select id
     from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 1
       and next_attempt_at >= pg_catalog.to_timestamp(%(from)s::float8)
       and next_attempt_at < pg_catalog.to_timestamp(%(to_normal)s::float8)
       and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
       and id <> all(%(excluded)s::uuid[])
       and not exists (select from push_listener.unwritable_rows u
                         where u.push_id = push_notifications.id and u.until > pg_catalog.now() offset 0)
     limit 1000)
) early
