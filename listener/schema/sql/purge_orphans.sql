-- Deletes old log rows whose push no longer exists, within one page of push ids. It returns the number of deleted rows
-- and the last id of the page.
--
-- The subselect makes Postgres look up each push. For a join it might read all pushes.
with page as materialized (
  select push_id
    from public.push_delivery_logs
    where push_id > %(after)s and push_id <= %(until)s
    order by push_id
    limit %(limit)s
), orphans as materialized (
  select l.push_id
    from (select distinct push_id from page) l
    where (select p.id from public.push_notifications p where p.id = l.push_id) is null
), gone as (
  delete from public.push_delivery_logs
    where push_id = any (array(select push_id from orphans)) and created_at < pg_catalog.to_timestamp(%(before)s::float8)
    returning 1
)
select (select pg_catalog.count(*) from gone) as logs,
       (select push_id from page order by push_id desc limit 1) as last
