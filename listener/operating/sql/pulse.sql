-- What the first screen shows: the sums of today and yesterday, how late the queue is, the workers that live, and what
-- changed last. One row; "failed" and "latest" are JSON.
--
-- Each index of finished pushes gives its newest entries. No index has the waiting ones in the order of their changes, so
-- those that became due last and those that are due next stand for them.
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
), first_due as (
  (select next_attempt_at, created_at from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 0 and next_attempt_at <= pg_catalog.now()
       and next_attempt_at > '-infinity'::timestamptz
       and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
       and not exists (select from push_listener.unwritable_rows u
                         where u.push_id = push_notifications.id and u.until > pg_catalog.now() offset 0)
     order by (case priority::text when 'high' then 0 else 1 end), next_attempt_at limit 1)
  union all
  (select next_attempt_at, created_at from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at <= pg_catalog.now()
       and next_attempt_at > '-infinity'::timestamptz
       and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
       and not exists (select from push_listener.unwritable_rows u
                         where u.push_id = push_notifications.id and u.until > pg_catalog.now() offset 0)
     order by (case priority::text when 'high' then 0 else 1 end), next_attempt_at limit 1)
)
select extract(epoch from pg_catalog.clock_timestamp())::float8 as at,
    coalesce((select pg_catalog.sum(sent) from ended), 0::numeric)::bigint as sent,
    coalesce((select pg_catalog.json_object_agg(error_code, dead + expired) from ended where dead + expired > 0::bigint),
      '{{}}')::text as failed,
    coalesce((select pg_catalog.max(extract(epoch from pg_catalog.now())::float8
        - extract(epoch from greatest(f.next_attempt_at, f.created_at))::float8) from first_due f
      where pg_catalog.isfinite(greatest(f.next_attempt_at, f.created_at))), 0::float8) as oldest_due,
    (select pg_catalog.count(distinct w.id)
       from push_listener.lock_holders h
       join push_listener.workers w on w.id = h.key and w.stopped_at is null
       where h.lock = 'liveness' and h.granted and h.is_ours) as workers,
    coalesce((select pg_catalog.json_agg(l) from (select {line} from latest p) l), '[]')::text as latest
