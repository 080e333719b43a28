-- What the metrics show of the database, in one row: each column is the JSON of the rows of one query. The clock is
-- read last.
with depth as materialized (
  {depth}
), unwritable as materialized (
  {unwritable}
), days as materialized (
  select * from push_listener.daily_totals(31)
), ended as materialized (
  select * from push_listener.ended_by_code(2)
), server as materialized (
  {server}
)
select coalesce((select pg_catalog.json_agg(d) from depth d), '[]')::text as depth,
    coalesce((select pg_catalog.json_agg(u) from unwritable u), '[]')::text as unwritable,
    coalesce((select pg_catalog.json_agg(y) from days y), '[]')::text as days,
    coalesce((select pg_catalog.json_agg(e) from ended e), '[]')::text as ended,
    (select pg_catalog.row_to_json(s) from server s)::text as server
