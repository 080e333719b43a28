-- The workers that have not signed off, and whether each lives. A worker that is not guarded (with WAKEUP=sweep, or
-- just started) holds no lock, so is_alive is false although it may live.
select w.id, w.name, w.guarded,
       extract(epoch from pg_catalog.clock_timestamp() - w.started_at)::float8 as seconds,
       exists (
         select from push_listener.lock_holders h
           where h.lock = 'liveness' and h.key = w.id and h.granted and h.is_ours) as is_alive,
       (select pg_catalog.count(*)::integer
          from (select from public.push_notifications p
                  where p.next_attempt_at is not null and p.status::text in ('pending', 'processing', 'failed')
                    and p.status::text = 'processing' and p.claimed_by = w.id
                  limit 10001) held) as rows
  from push_listener.workers w
  where w.stopped_at is null
  order by w.id
