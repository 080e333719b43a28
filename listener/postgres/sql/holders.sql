-- What keeps vacuum from removing dead rows of this database. The columns are the fields of Holder of the doctor.
--
-- A transaction that has written holds them by its own id too: between its statements under READ COMMITTED it has no
-- snapshot. A background worker, such as one of pg_cron, holds them as a client does. Vacuum itself does not hold up
-- others, and a parallel worker has the snapshot of its leader. Of a session that belongs to another role, both ids are
-- visible to members of pg_read_all_stats only.
select 'session'::text as kind, a.application_name as name, a.pid, a.usename::text as role,
       coalesce(a.state, a.backend_type) as state,
       greatest(pg_catalog.age(a.backend_xmin), pg_catalog.age(a.backend_xid)) as age,
       extract(epoch from pg_catalog.clock_timestamp() - a.xact_start)::float8 as seconds
  from pg_catalog.pg_stat_activity a
  where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid <> pg_catalog.pg_backend_pid()
    and a.datname = pg_catalog.current_database()
    and a.backend_type <> all('{autovacuum worker,parallel worker,walsender}'::text[])
union all
select 'standby', r.application_name, r.pid, r.usename::text, r.state, pg_catalog.age(r.backend_xmin), null
  from pg_catalog.pg_stat_replication r
  where r.backend_xmin is not null
union all
select 'prepared transaction', p.gid, null, p.owner::text, null, pg_catalog.age(p.transaction),
       extract(epoch from pg_catalog.clock_timestamp() - p.prepared)::float8
  from pg_catalog.pg_prepared_xacts p
  where p.database = pg_catalog.current_database()
union all
select 'replication slot', s.slot_name::text, s.active_pid, null,
       case when s.active then 'active' else 'inactive' end, pg_catalog.age(s.xmin), null
  from pg_catalog.pg_replication_slots s
  where s.xmin is not null
