-- The workers that have not signed off, and those that ended last. The pushes that each holds are counted among a
-- bounded number of claims: the scan of the index starts after all rows that are due.
with shown as materialized (
  (select id, name, started_at, stopped_at, guarded, lost from push_listener.workers
     where stopped_at is null order by id desc limit %(workers)s::bigint)
  union all
  (select id, name, started_at, stopped_at, guarded, lost from push_listener.workers
     where stopped_at is not null order by id desc limit %(ended)s::bigint)
), ahead as materialized (
  (select claimed_by, status::text as status from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 0 and next_attempt_at > pg_catalog.now()
       and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
     order by (case priority::text when 'high' then 0 else 1 end), next_attempt_at limit %(window)s::bigint)
  union all
  (select claimed_by, status::text from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at > pg_catalog.now()
       and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
     order by (case priority::text when 'high' then 0 else 1 end), next_attempt_at limit %(window)s::bigint)
), held as materialized (
  select claimed_by, pg_catalog.count(*) as pushes from ahead where status = 'processing' group by claimed_by
), alive as materialized (
  select distinct h.key from push_listener.lock_holders h where h.lock = 'liveness' and h.granted and h.is_ours
)
select s.id, s.name, extract(epoch from s.started_at)::float8 as started_at,
    extract(epoch from s.stopped_at)::float8 as stopped_at, s.guarded as is_guarded, s.lost as is_lost,
    s.stopped_at is null and a.key is not null as is_alive, coalesce(h.pushes, 0::bigint) as pushes,
    (select pg_catalog.count(*) from ahead) < %(window)s::bigint as is_exact
  from shown s
  left join held h on h.claimed_by = s.id
  left join alive a on a.key = s.id
  order by s.stopped_at is not null, s.id desc
