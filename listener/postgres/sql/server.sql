-- How the server and the workers are: one row. The columns are the fields of Server.
--
-- pg_notification_queue_usage() also drops from the queue what every session has read, for which the server itself waits
-- until somebody notifies.
--
-- What holders.sql finds keeps vacuum from removing what became dead since: then each look over the whole range of due
-- times reads more and more dead entries of the index. The age is unknown to a role that does not see the sessions of
-- others.
select pg_catalog.pg_notification_queue_usage() as notify_queue,
    (select pg_catalog.count(distinct w.id)
       from push_listener.lock_holders h
       join push_listener.workers w on w.id = h.key and w.stopped_at is null
       where h.lock = 'liveness' and h.granted and h.is_ours) as workers,
    case when pg_catalog.pg_has_role('pg_read_all_stats', 'usage')
         then coalesce((select pg_catalog.max(o.age) from ({holders}) o), 0) end as snapshot_age,
    extract(epoch from pg_catalog.clock_timestamp())::float8 as clock
