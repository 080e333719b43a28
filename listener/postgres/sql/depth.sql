-- What waits in the queue, by status and priority.
--
-- A push has waited since it was first due, also while it waits for its next try: if FCM fails for every push, none may
-- be due, and all are late. A row that was scheduled for a time before its insertion has waited since its insertion. If
-- none of these times is a date, the row is counted, but is not the oldest. A row that cannot be written does not count
-- as due, and not as scheduled either once its time has come.
--
-- All waiting rows are read, so those that cannot be written are joined: a hash that does not fit into work_mem is
-- written to disk, whereas "not in" would compare every row with every other. OFFSET 0 keeps Postgres from reading the
-- waiting rows in the order of the join, by the index of all ids.
select status, case lane when 0 then 'high' else 'normal' end as priority, pg_catalog.count(*) as pushes,
    pg_catalog.count(*) filter (where is_due) as due,
    pg_catalog.count(*) filter (where is_scheduled) as scheduled,
    extract(epoch from pg_catalog.now())::float8
      - extract(epoch from pg_catalog.min(since) filter (where was_due and pg_catalog.isfinite(since)))::float8 as oldest_due
  from (
    select w.status, w.lane,
        greatest(case when w.status::text = 'processing' or w.first_due_at is null then w.next_attempt_at end,
          w.created_at, w.first_due_at) as since,
        w.next_attempt_at <= pg_catalog.now() and u.push_id is null as is_due,
        u.push_id is null and (
          w.next_attempt_at <= pg_catalog.now()
          or w.status::text <> 'processing' and w.first_due_at <= pg_catalog.now()
            and w.next_attempt_at < 'infinity'::timestamptz) as was_due,
        w.next_attempt_at > pg_catalog.now() and w.status::text in ('pending', 'failed') as is_scheduled
      from (
        select id, status, next_attempt_at, created_at, (case priority::text when 'high' then 0 else 1 end) as lane,
            case when delivery_attempts > 0 then push_first_due_at end as first_due_at
          from public.push_notifications
          where next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
          offset 0
      ) w
      left join push_listener.unwritable_rows u on u.push_id = w.id and u.until > pg_catalog.now()
  ) waiting
  group by status, lane
