-- Looks through a bounded number of entries of one index, and returns those that match, in the order of the index.
--
-- The indexes do not end in the id, and many rows may have the same key: one statement of the application can insert a
-- million rows, and one update of the service cancels or settles many. So a place in the order is a key, and how many
-- entries with this key are behind ("position"). A sort by the id would read all of them for each page.
--
-- The last entry that was looked at is returned even if it does not match, so that the caller can go on behind it.
select {line}, p.matches, extract(epoch from p.key)::float8 as key, p.position, p.number = %(window)s::bigint as is_edge
  from (
    select p.*, ({matches}) as matches,
        pg_catalog.row_number() over in_order as number,
        pg_catalog.row_number() over in_order - pg_catalog.rank() over in_order + 1::bigint
          + case when p.key = pg_catalog.to_timestamp(%(at)s::float8) then %(skip)s::bigint else 0::bigint end as position
      from (
        {entries}
        offset %(skip)s::bigint limit %(window)s::bigint
      ) p
      window in_order as (order by p.key {direction})
  ) p
  where p.matches or p.number = %(window)s::bigint
  limit %(limit)s::bigint
