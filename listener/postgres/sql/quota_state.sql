-- The shared quota, and the number of other live workers. The columns are NULL if the row of push_listener.shared_quota
-- is missing.
select r.fraction,
    extract(epoch from pg_catalog.clock_timestamp() - r.reduced_at)::float8 as age,
    (select pg_catalog.count(distinct w.id)
       from push_listener.lock_holders h
       join push_listener.workers w on w.id = h.key and w.stopped_at is null
       where h.lock = 'liveness' and w.id <> %(worker)s and h.granted and h.is_ours) as others
  from (select 1) one
  left join push_listener.shared_quota r on true
