-- What waits in the queue, by status and priority.
--
-- A push waits since it was first due, also while it waits for its next try: if FCM fails for every push, none may be due,
-- and all are late. A row that was scheduled for a time before its insertion waits since its insertion. For how long is
-- unknown if no time is a date: such a row counts, and is not the oldest. A row that cannot be written does not count as
-- due.
select status, case lane when 0 then 'high' else 'normal' end as priority, pg_catalog.count(*) as pushes,
    pg_catalog.count(*) filter (where was_due and next_attempt_at <= pg_catalog.now()) as due,
    extract(epoch from pg_catalog.now())::float8
      - extract(epoch from pg_catalog.min(since) filter (where was_due and pg_catalog.isfinite(since)))::float8 as oldest_due
  from (
    select status, (case priority::text when 'high' then 0 else 1 end) as lane,
        next_attempt_at,
        greatest(case when status::text = 'processing' or first_due_at is null then next_attempt_at end,
          created_at, first_due_at) as since,
        (next_attempt_at <= pg_catalog.now()
          or status::text <> 'processing' and first_due_at <= pg_catalog.now()
            and next_attempt_at < 'infinity'::timestamptz)
        and id not in (
          select u.push_id from push_listener.unwritable_rows u where u.until > pg_catalog.now()) as was_due
      from public.push_notifications
      where next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
  ) waiting
  group by status, lane
