-- Looks through a bounded number of entries of one index, and returns those that match, in order.
--
-- Many rows may have the same key: one statement of the application can insert a million rows, and one update of the
-- service cancels or settles many. An index has those in the order of their place in the table, and a row keeps its block
-- while it keeps its key. So the order is: key, block, id; a place in it stays true whatever happens to other rows.
--
-- Of the last block that was looked at the index may hold more, so what is in it is left for the next look, which begins
-- there ("is_cut"). A scan backwards has the rows with one key in no order, so there all with the last key are left.
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
