-- Marks dead workers as lost and locks their rows, which the same transaction then puts back; returns the ids of both.
--
-- Rows that another transaction has locked are passed over. Their worker stays a suspect, so the next rescue looks for
-- them again.
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
), theirs as materialized (
  select p.id, p.claimed_by
    from public.push_notifications p
    where p.claimed_by in (select id from dead) and p.status::text = 'processing'
      -- The scan of the index starts after all rows that are due. A row whose lease has ended can be claimed anyway.
      and (case p.priority::text when 'high' then 0 else 1 end) in (0, 1) and p.next_attempt_at > pg_catalog.now()
), free as materialized (
  select p.id
    from public.push_notifications p
    where p.id in (select id from theirs) and p.claimed_by in (select id from dead) and p.status::text = 'processing'
      and pg_catalog.set_config('lock_timeout', '200ms', true) is not null
    for no key update of p skip locked
), buried as (
  update push_listener.workers w
    set stopped_at = pg_catalog.now(), lost = true
    from dead
    where w.id = dead.id
      and not exists (select from theirs t where t.claimed_by = dead.id and t.id not in (select id from free))
    returning w.id
)
select coalesce((select pg_catalog.array_agg(id) from buried), '{}') as dead,
    coalesce((select pg_catalog.array_agg(id) from free), '{}') as rows
