-- What a worker checks when it has not been notified for a while. The columns are the fields of Sweep.
--
-- The polling lock does not count if this worker itself holds it. Then one session holds it and this worker's liveness
-- lock.
with holders as materialized (
  select * from push_listener.lock_holders where lock in ('polling', 'liveness')
)
select
  ({earliest}) as earliest,
  exists (
    select from holders a
      where a.lock = 'polling' and a.exclusive and not exists (
        select from holders l
          where l.lock = 'liveness' and l.key = %(worker)s and l.granted and l.is_ours and l.pid = a.pid)
  ) as polling_locked,
  exists (select from push_listener.workers where id = %(worker)s and incarnation = %(incarnation)s::uuid)
    as registered,
  exists (select from holders l where l.lock = 'liveness' and l.key = %(worker)s and l.granted and l.is_ours)
    as guarded,
  ({foreign_triggers}) as has_foreign_triggers,
  (
    select pg_catalog.row_security_active(q.id) and exists (
      select from pg_catalog.pg_policy y, pg_catalog.unnest(y.polroles) as r(id)
        where y.polrelid = q.id and not y.polpermissive and y.polcmd in ('*'::"char", 'r'::"char", 'w'::"char")
          and (r.id = 0::oid or pg_catalog.pg_has_role(r.id, 'usage'::text)))
      from (select 'public.push_notifications'::regclass::oid as id) q
  ) as is_restricted,
  (select coalesce(pg_catalog.json_agg(s), '[]')::text from ({strangers}) s) as strangers
