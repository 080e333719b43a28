-- The waiting pushes that are due soonest or became due last, the last changed first. No index has all waiting pushes
-- in the order of their changes. If more pushes wait, a search by their status finds the others.
select {columns}, updated_at as key, 0::bigint as block
  from (
    {nearest}
  ) waiting
  where updated_at between pg_catalog.to_timestamp(%(at_least)s::float8) and pg_catalog.to_timestamp(%(at)s::float8)
    and updated_at between %(since)s::timestamptz and %(until)s::timestamptz
    and (updated_at < pg_catalog.to_timestamp(%(at)s::float8) or id > %(behind)s::uuid)
  order by updated_at desc, id
