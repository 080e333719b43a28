-- What waits in the queue, by status. A row that was scheduled for a time before its insertion waits since its insertion.
-- For how long is unknown if both times are no dates: such a row counts, and is not the oldest.
select status, pg_catalog.count(*) as pushes,
    pg_catalog.count(*) filter (where next_attempt_at <= pg_catalog.now()) as due,
    extract(epoch from pg_catalog.now())::float8
      - extract(epoch from pg_catalog.min(greatest(next_attempt_at, created_at))
                           filter (where next_attempt_at <= pg_catalog.now()
                                            and pg_catalog.isfinite(greatest(next_attempt_at, created_at))))::float8 as oldest_due
  from public.push_notifications
  where next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
  group by status
