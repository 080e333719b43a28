-- Looks through a bounded number of entries of one index, and returns those that match, in order.
--
-- Many rows may have the same key: one statement of the application can insert a million rows, and one update of the
-- service cancels or settles many. An index has such rows in the order of their place in the table, and a row keeps its
-- block while it keeps its key. So the order is key, block, id, and a place in this order stays valid whatever happens
-- to other rows.
--
-- The index may hold more entries of the last block that was looked at. So the entries of that block are left for the
-- next look, which begins with that block ("is_cut"). A backward scan returns rows with the same key in no useful
-- order, so it leaves all entries with the last key.
select {line}, p.matches and not p.is_cut as matches, extract(epoch from p.key)::float8 as key, p.block,
    p.looked = %(window)s::bigint as is_edge, p.is_cut
  from (
    select p.*, {is_cut} as is_cut
      from (
        select p.*, ({matches}) as matches, pg_catalog.row_number() over () as looked
          from (
            {entries}
            limit %(window)s::bigint
          ) p
      ) p
      window in_order as (order by p.key {direction}{blocks})
  ) p
  where p.matches and not p.is_cut or p.looked = %(window)s::bigint
  order by p.key {direction}, p.block, p.id
  limit %(limit)s::bigint
