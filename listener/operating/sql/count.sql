-- How many of a bounded number of entries of one index match. Counting stops at "most".
select pg_catalog.count(*) filter (where c.matches) as matches,
    coalesce(pg_catalog.bool_or(c.number = %(window)s::bigint), false) as is_edge
  from (
    select p.matches, p.number
      from (
        select ({matches}) and p.id <> all(%(without)s::uuid[]) as matches, pg_catalog.row_number() over () as number
          from (
            {entries}
            limit %(window)s::bigint
          ) p
      ) p
      where p.matches or p.number = %(window)s::bigint
      limit %(most)s::bigint
  ) c
