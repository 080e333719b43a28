-- Deletes one batch of old pushes and their log rows, the oldest first. It returns the numbers of rows, and the
-- updated_at (Unix time) from which to continue.
--
-- The ids are compared with an array, so that Postgres finds the rows through their index, whatever size it expects the
-- table to have.
with old as materialized (
  select id, updated_at
    from public.push_notifications
    where {old} and updated_at >= pg_catalog.to_timestamp(%(start)s::float8)
      and (not %(beyond)s or updated_at > pg_catalog.to_timestamp(%(start)s::float8))
    order by updated_at
    limit %(limit)s
    for update skip locked
), gone as (
  delete from public.push_notifications where id = any (array(select id from old)) returning id
), logs as (
  delete from public.push_delivery_logs where push_id = any (array(select id from gone)) returning 1
)
select (select pg_catalog.count(*) from gone) as pushes, (select pg_catalog.count(*) from logs) as logs,
       (select pg_catalog.count(*) from old) as found,
       (select extract(epoch from pg_catalog.max(updated_at))::float8 from old) as newest
