-- Seconds until the first waiting row is due, among the rows that are due from a certain time on and not later than
-- "ahead" seconds from now (see frontier.py). There is one search for each lane, because the index begins with the
-- lane.
-- OFFSET 0: see due.sql.
select extract(epoch from least(
    (select next_attempt_at from public.push_notifications
       where (case priority::text when 'high' then 0 else 1 end) = 0
         and next_attempt_at >= pg_catalog.to_timestamp(%(from_high)s::float8)
         and next_attempt_at <= case when %(ahead)s::float8 = 'Infinity'::float8 then 'infinity'::timestamptz
                                     else pg_catalog.now() + pg_catalog.make_interval(secs => %(ahead)s::float8) end
         and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
         and id <> all(%(excluded)s::uuid[])
         and not exists (select from push_listener.unwritable_rows u
                           where u.push_id = push_notifications.id and u.until > pg_catalog.now() offset 0)
       order by next_attempt_at limit 1),
    (select next_attempt_at from public.push_notifications
       where (case priority::text when 'high' then 0 else 1 end) = 1
         and next_attempt_at >= pg_catalog.to_timestamp(%(from_normal)s::float8)
         and next_attempt_at <= case when %(ahead)s::float8 = 'Infinity'::float8 then 'infinity'::timestamptz
                                     else pg_catalog.now() + pg_catalog.make_interval(secs => %(ahead)s::float8) end
         and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
         and id <> all(%(excluded)s::uuid[])
         and not exists (select from push_listener.unwritable_rows u
                           where u.push_id = push_notifications.id and u.until > pg_catalog.now() offset 0)
       order by next_attempt_at limit 1)
  ))::float8 - extract(epoch from pg_catalog.clock_timestamp())::float8
