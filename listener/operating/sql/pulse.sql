-- What the first screen shows: the sums of today and yesterday, how late the queue is, the workers that live, and the
-- pushes that changed last. It returns one row; "failed" and "latest" are JSON.
--
-- Each index of finished pushes gives its newest entries. No index has the waiting pushes in the order of their
-- changes, so the waiting pushes that became due last and those that are due next are taken instead.
--
-- How late the queue is follows the rule of listener/postgres/sql/depth.sql, but only for the pushes that are due
-- first. The next try of the push that was first due longest ago may come after all of these. Only a look at all
-- waiting pushes would find such a push.
--
-- OFFSET 0: see listener/postgres/sql/due.sql.
with ended as materialized (
  select error_code, sent, dead, expired from push_listener.ended_by_code(2)
), changed as (
  (select {columns} from public.push_notifications
     where status::text in ('sent', 'delivered', 'expired', 'cancelled')
     order by updated_at desc limit %(latest)s::bigint)
  union all
  (select {columns} from public.push_notifications
     where status::text in ('dead', 'expired', 'failed', 'cancelled')
     order by updated_at desc limit %(latest)s::bigint)
  union all
  (select {columns}
     from (
       {nearest}
     ) waiting)
), latest as (
  select *
    from (select distinct on (id) {columns} from changed order by id) once
    where pg_catalog.isfinite(updated_at)
    order by updated_at desc, id desc limit %(latest)s::bigint
), front as materialized (
  (select id, status, next_attempt_at, created_at, case when delivery_attempts > 0 then push_first_due_at end as first_due_at
     from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 0
       and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
     order by (case priority::text when 'high' then 0 else 1 end), next_attempt_at limit %(window)s::bigint + 1::bigint)
  union all
  (select id, status, next_attempt_at, created_at, case when delivery_attempts > 0 then push_first_due_at end as first_due_at
     from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 1
       and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
     order by (case priority::text when 'high' then 0 else 1 end), next_attempt_at limit %(window)s::bigint + 1::bigint)
), waiting as materialized (
  select w.status,
      greatest(case when w.status::text = 'processing' or w.first_due_at is null then w.next_attempt_at end,
        w.created_at, w.first_due_at) as since,
      w.next_attempt_at <= pg_catalog.now() as is_due,
      w.next_attempt_at <= pg_catalog.now()
        or w.status::text <> 'processing' and w.first_due_at <= pg_catalog.now()
          and w.next_attempt_at < 'infinity'::timestamptz as was_due
    from front w
    where not exists (select from push_listener.unwritable_rows u
                        where u.push_id = w.id and u.until > pg_catalog.now() offset 0)
)
select extract(epoch from pg_catalog.clock_timestamp())::float8 as at,
    coalesce((select pg_catalog.sum(sent) from ended), 0::numeric)::bigint as sent,
    coalesce((select pg_catalog.json_object_agg(error_code, dead + expired) from ended where dead + expired > 0::bigint),
      '{{}}')::text as failed,
    coalesce((select extract(epoch from pg_catalog.now())::float8 - extract(epoch from pg_catalog.min(w.since))::float8
                from waiting w where w.was_due and pg_catalog.isfinite(w.since)), 0::float8) as oldest_due,
    coalesce((select pg_catalog.bool_or(w.is_due) from waiting w), false) as is_due,
    (select pg_catalog.count(*) from waiting w where w.was_due and not w.is_due) as retrying,
    (select pg_catalog.count(*) from front) <= %(window)s::bigint as is_whole,
    (select pg_catalog.count(distinct w.id)
       from push_listener.lock_holders h
       join push_listener.workers w on w.id = h.key and w.stopped_at is null
       where h.lock = 'liveness' and h.granted and h.is_ours) as workers,
    coalesce((select pg_catalog.json_agg(l) from (select {line} from latest p) l), '[]')::text as latest
