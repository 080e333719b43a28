-- The pushes that are over and not dead, the last changed first.
select {columns}, updated_at as key, (ctid::text::point)[0]::bigint as block
  from public.push_notifications
  where status::text in ('sent', 'delivered', 'expired', 'cancelled')
    and updated_at between pg_catalog.to_timestamp(%(at_least)s::float8) and pg_catalog.to_timestamp(%(at)s::float8)
    and updated_at between %(since)s::timestamptz and %(until)s::timestamptz
    and (updated_at < pg_catalog.to_timestamp(%(at)s::float8) or %(is_whole)s::boolean)
  order by updated_at desc
