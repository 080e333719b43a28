-- Marks dead workers as lost and puts their rows back into the queue; returns the ids of the workers and the number of
-- rows.
--
-- A worker is dead if its liveness lock is free (this transaction then holds the lock until it ends) or if only
-- strangers hold the lock: a rescue must not wait for a stranger. The worker's row in push_listener.workers is locked
-- before that is checked, so that no other rescue handles the worker at the same time. A worker that comes back writes
-- to that row before it claims anything.
with suspects as materialized (
  select w.id
    from push_listener.workers w
    where w.id = any(%(suspects)s::integer[]) and w.guarded and w.stopped_at is null
    for update skip locked
), dead as materialized (
  select s.id
    from suspects s
    where case when pg_catalog.pg_try_advisory_xact_lock(%(class)s, s.id) then true
               else not push_listener.is_alive(s.id) end
), buried as (
  update push_listener.workers w set stopped_at = pg_catalog.now(), lost = true from dead where w.id = dead.id
), rescued as (
  -- The rows go to the front of the queue: if one of them killed the worker, it is tried again soon, with few others.
  update public.push_notifications p
    set status = 'pending', next_attempt_at = least(p.created_at, pg_catalog.now()),
        lost_claims = coalesce(p.lost_claims, 0) + 1, updated_at = pg_catalog.now()
    from dead
    where p.claimed_by = dead.id and p.status::text = 'processing'
      -- The scan of the index starts after all rows that are due. A row whose lease has ended can be claimed anyway.
      and (case p.priority::text when 'high' then 0 else 1 end) in (0, 1) and p.next_attempt_at > pg_catalog.now()
    returning p.id
)
select coalesce((select pg_catalog.array_agg(id) from dead), '{}') as dead,
    (select pg_catalog.count(*) from rescued) as rows
