-- Each start of a listener is one worker, whose id stands in claimed_by. A worker holds a session advisory lock,
-- (1886745448, its id), as long as its doorbell connection lives. When the connection ends, the lock is released, and
-- other workers take its rows back at once.

create table push_listener.workers (
  id integer generated always as identity primary key,
  name text not null,
  incarnation uuid not null default gen_random_uuid(),
  started_at timestamptz not null default now(),
  stopped_at timestamptz,
  guarded boolean not null default false,
  lost boolean not null default false
);
comment on column push_listener.workers.incarnation is
  'Chosen at random by the worker: a database that has been restored, or has lost rows, may give an id a second time.';
comment on column push_listener.workers.guarded is
  'The worker has held its liveness lock, so a missing lock means that it has died.';
comment on column push_listener.workers.lost is
  'It ended without signing off, and other workers took its rows.';

-- Few workers live, but rows of many old ones remain.
create index workers_standing on push_listener.workers (id) where stopped_at is null;

-- Any session may take any advisory lock, so a lock alone proves nothing. Only this view tells locks of
-- push-listener's own sessions from locks of strangers. The statements of the service and the command "doctor" read
-- it.
--
-- "key" is the id of a worker if lock = 'liveness'. "exclusive" is also true for a session that waits for the lock,
-- because its wait keeps others from taking the lock in shared mode. "granted" tells the two apart.
--
-- A prepared transaction has no pid and no session (pg_stat_get_activity(null) would list every session). A session
-- that began after this transaction first read the activity has no role here, and counts as ours: to treat a live
-- worker as dead is the worse mistake.
create view push_listener.lock_holders with (security_invoker = true) as
with held as materialized (
  -- Read once: two reads of pg_locks may see different moments.
  select case
           when l.objsubid = 2 and l.classid = 1886745448 then 'liveness'
           when l.objsubid = 2 and l.classid = 1886745449 and l.objid = 0 then 'polling'
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
                  -- A login without inheritance may use "set role".
                  or coalesce(pg_catalog.pg_has_role(
                       a.usesysid, pg_catalog.to_regrole('push_listener'), 'member'), false)
              end)
         -- Only a worker takes the polling lock, on the connection that holds its liveness lock.
         and (h.lock <> 'polling' or exists (
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
  'Sessions and prepared transactions that hold or wait for an advisory lock of push-listener; is_ours: a session of push-listener.';

\ir ../functions/push_listener/is_alive.sql
