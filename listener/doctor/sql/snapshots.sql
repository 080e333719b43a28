-- What keeps vacuum from removing dead rows of this database: the oldest first. Of a session that belongs to another
-- role, backend_xmin is visible to members of pg_read_all_stats only.
select kind, name, pid, role, state, age, seconds from (
  select 'session' as kind, a.application_name as name, a.pid, a.usename::text as role, a.state,
         pg_catalog.age(a.backend_xmin) as age,
         extract(epoch from pg_catalog.clock_timestamp() - a.xact_start)::float8 as seconds
    from pg_catalog.pg_stat_activity a
    where a.backend_xmin is not null and a.pid <> pg_catalog.pg_backend_pid()
      and a.datname = pg_catalog.current_database() and a.backend_type = 'client backend'
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
) held
order by age desc
limit 10
