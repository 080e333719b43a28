-- Due rows before the due time from which claims begin, a bounded number of each lane; see frontier.py. They are in no
-- order, so that Postgres can use a bitmap. With a million dead entries in the index, a bitmap takes 0.4 of the CPU
-- time, because the entries of claims and leases alternate and lead to different pages.
-- OFFSET 0: see due.sql.
select id, lane, extract(epoch from next_attempt_at)::float8 as due_at from (
  (select id, next_attempt_at, 0 as lane
     from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 0
       and next_attempt_at >= pg_catalog.to_timestamp(%(from)s::float8)
       and next_attempt_at < pg_catalog.to_timestamp(%(to_high)s::float8)
       and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
       and id <> all(%(excluded)s::uuid[])
       and not exists (select from push_listener.unwritable_rows u
                         where u.push_id = push_notifications.id and u.until > pg_catalog.now() offset 0)
     limit %(most)s::bigint)
  union all
  (select id, next_attempt_at, 1 as lane
     from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 1
       and next_attempt_at >= pg_catalog.to_timestamp(%(from)s::float8)
       and next_attempt_at < pg_catalog.to_timestamp(%(to_normal)s::float8)
       and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
       and id <> all(%(excluded)s::uuid[])
       and not exists (select from push_listener.unwritable_rows u
                         where u.push_id = push_notifications.id and u.until > pg_catalog.now() offset 0)
     limit %(most)s::bigint)
) early
