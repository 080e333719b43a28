-- How the server and the workers are: one row. The columns are the fields of Server.
--
-- pg_notification_queue_usage() also drops from the queue what every session has read, for which the server itself waits
-- until somebody notifies.
--
-- A snapshot that a session, a prepared transaction or a replication slot holds keeps vacuum from removing what became
-- dead since: then each claim reads more and more dead entries of the index. Vacuum itself does not hold up others.
select pg_catalog.pg_notification_queue_usage() as notify_queue,
    (select pg_catalog.count(distinct w.id)
       from push_listener.lock_holders h
       join push_listener.workers w on w.id = h.key and w.stopped_at is null
       where h.lock = 'liveness' and h.granted and h.is_ours) as workers,
    greatest(
      (select pg_catalog.max(pg_catalog.age(a.backend_xmin))
         from pg_catalog.pg_stat_activity a
         where (a.datname = pg_catalog.current_database() or a.datname is null)
           and a.pid <> pg_catalog.pg_backend_pid() and a.backend_type <> 'autovacuum worker'::text),
      (select pg_catalog.max(pg_catalog.age(x.transaction))
         from pg_catalog.pg_prepared_xacts x where x.database = pg_catalog.current_database()),
      (select pg_catalog.max(pg_catalog.age(s.xmin)) from pg_catalog.pg_replication_slots s),
      0) as snapshot_age,
    extract(epoch from pg_catalog.clock_timestamp())::float8 as clock
