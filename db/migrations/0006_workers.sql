-- Who has held rows: each start of a listener is one worker, and its id is what claimed_by means. A worker holds a
-- session advisory lock, (1886745448, its id), for as long as its doorbell connection stands: when that goes, the lock
-- goes, and its peers take its rows back at once.

create table push_listener.workers (
  id integer generated always as identity primary key,
  name text not null,
  started_at timestamptz not null default now(),
  stopped_at timestamptz,
  guarded boolean not null default false,
  lost boolean not null default false
);
comment on column push_listener.workers.guarded is
  'It holds (or held) its liveness lock, so that the lock''s absence means something.';
comment on column push_listener.workers.lost is
  'It ended without a word, and its peers took its rows.';

-- Few workers live; many have lived.
create index workers_standing on push_listener.workers (id) where stopped_at is null;

-- Any session may take any advisory lock, so a lock alone proves nothing. This view is the one place that tells the
-- locks of push-listener's own sessions from those of strangers. The statements of the service and the command "doctor"
-- read it.
--
-- "key" is a worker's id where lock = 'liveness'. "exclusive" is also true of a session that waits for the lock: its
-- wait keeps others from taking the lock in shared mode. "granted" tells the two apart.
--
-- A prepared transaction has no pid, and is nobody's session. pg_stat_get_activity would list every session for null. A
-- session that began after this transaction first looked has no role here, and counts as ours: to take a live worker for
-- dead is the worse mistake.
create view push_listener.lock_holders with (security_invoker = true) as
with held as materialized (
  -- Read once: two reads of pg_locks are not of one instant.
  select case
           when l.objsubid = 2 and l.classid = 1886745448 then 'liveness'
           when l.objsubid = 2 and l.classid = 1886745449 and l.objid = 0 then 'awake'
           when l.objsubid = 1 and (l.classid, l.objid) = (1701603, 2809224513) then 'migrate'
           when l.objsubid = 1 and (l.classid, l.objid) = (1701603, 2809224514) then 'rollback'
           when l.objsubid = 1 and (l.classid, l.objid) = (1701603, 2809224515) then 'purge'
         end as lock,
         l.objid::bigint as key, l.pid, l.virtualtransaction, l.mode = 'ExclusiveLock' as exclusive, l.granted
    from pg_catalog.pg_locks l
    where l.locktype = 'advisory'
      and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
)
select h.lock, h.key, h.pid, coalesce(pg_catalog.pg_get_userbyid(a.usesysid), p.owner)::text as role, p.gid as prepared,
       h.exclusive, h.granted,
       h.pid is not null
         and (a.usesysid is null or case
                when h.lock in ('migrate', 'rollback') then pg_catalog.pg_has_role(a.usesysid, t.relowner, 'member')
                when h.lock = 'purge' then pg_catalog.has_table_privilege(a.usesysid, 'public.push_notifications', 'delete')
                else pg_catalog.has_any_column_privilege(a.usesysid, t.oid, 'update')
                  or pg_catalog.pg_has_role(a.usesysid, t.relowner, 'member')
                  -- A login may inherit nothing and use "set role".
                  or coalesce(pg_catalog.pg_has_role(
                       a.usesysid, pg_catalog.to_regrole('push_listener'), 'member'), false)
              end)
         -- Only a worker is ever awake, on the connection that holds its liveness lock.
         and (h.lock <> 'awake' or exists (
           select from held m
             join push_listener.workers w on w.id = m.key and w.stopped_at is null
             where m.lock = 'liveness' and m.pid = h.pid and m.granted)) as is_ours
  from held h
  cross join (
    select c.oid, c.relowner from pg_catalog.pg_class c where c.oid = 'push_listener.workers'::regclass
  ) t
  left join lateral pg_catalog.pg_stat_get_activity(coalesce(h.pid, 0)) a on true
  left join lateral (
    select x.owner, x.gid
      from pg_catalog.pg_locks own
      join pg_catalog.pg_prepared_xacts x on x.transaction = own.transactionid
      where h.pid is null and own.pid is null and own.locktype = 'transactionid'
        and own.virtualtransaction = h.virtualtransaction
    limit 1
  ) p on true
  where h.lock is not null;
comment on view push_listener.lock_holders is
  'Sessions and prepared transactions that hold or wait for an advisory lock of push-listener; is_ours: not a stranger.';

-- Asked row by row, after a worker's row has been locked: see the rescue in listener/postgres/queue.py. A function that is volatile
-- and not inlined reads the locks anew at each call; a join might have read them before.
create function push_listener.is_alive(worker integer) returns boolean
  language sql volatile set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from push_listener.lock_holders h
      where h.lock = 'liveness' and h.key = worker and h.granted and h.is_ours)
$$;
revoke all on function push_listener.is_alive(integer) from public;
comment on function push_listener.is_alive(integer) is
  'Whether a session that may be a worker, and not just any session, holds the liveness lock of that worker.';
