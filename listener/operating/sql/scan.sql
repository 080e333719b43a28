-- Looks through a bounded number of entries of one index, and returns those that match, in order.
--
-- Many rows may have the same key: one statement of the application can insert a million rows, and one update of the
-- service cancels or settles many. The index has those in the order of their place in the table, and a row keeps its block
-- while it keeps its key. So the order is: key, block, id; a place in it stays true whatever happens to other rows. "block" is
-- negative where the index is read backwards.
--
-- Of the last block that was looked at the index may hold more. So what is in it is left for the next look ("is_edge" is
-- where that begins), unless the index itself is in the order of the ids.
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
      window in_order as (order by p.key {direction}, p.block)
  ) p
  where p.matches and not p.is_cut or p.looked = %(window)s::bigint
  order by p.key {direction}, p.block, p.id
  limit %(limit)s::bigint
