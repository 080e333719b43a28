-- What waits in the queue, by status and priority.
--
-- A push waits since it was first due, and a retry since its own time. A row that was scheduled for a time before its
-- insertion waits since its insertion. For how long is unknown if no time is a date: such a row counts, and is not the
-- oldest. A row that cannot be written does not count as due.
select status, case lane when 0 then 'high' else 'normal' end as priority, pg_catalog.count(*) as pushes,
    pg_catalog.count(*) filter (where is_due) as due,
    extract(epoch from pg_catalog.now())::float8
      - extract(epoch from pg_catalog.min(since) filter (where is_due and pg_catalog.isfinite(since)))::float8 as oldest_due
  from (
    select status, (case priority::text when 'high' then 0 else 1 end) as lane,
        greatest(next_attempt_at, created_at, first_due_at) as since,
        next_attempt_at <= pg_catalog.now() and id not in (
          select u.push_id from push_listener.unwritable_rows u where u.until > pg_catalog.now()) as is_due
      from public.push_notifications
      where next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
  ) waiting
  group by status, lane
