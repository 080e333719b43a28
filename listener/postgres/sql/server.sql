-- The state of the server and of the workers: one row. The columns are the fields of Server.
--
-- pg_notification_queue_usage() also drops from the queue what every session has read. The server itself does that only
-- when a session notifies.
--
-- The holders that holders.sql finds keep vacuum from removing rows that became dead since. Then each look over the
-- whole range of due times reads more and more dead entries of the index. A role that does not see the sessions of
-- others gets no age.
select pg_catalog.pg_notification_queue_usage() as notify_queue,
    (select pg_catalog.count(distinct w.id)
       from push_listener.lock_holders h
       join push_listener.workers w on w.id = h.key and w.stopped_at is null
       where h.lock = 'liveness' and h.granted and h.is_ours) as workers,
    case when pg_catalog.pg_has_role('pg_read_all_stats', 'usage')
         then coalesce((select pg_catalog.max(o.age) from ({holders}) o), 0) end as snapshot_age,
    extract(epoch from pg_catalog.clock_timestamp())::float8 as clock
