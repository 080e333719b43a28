-- As given_up.sql, but only pushes that changed at one moment, block by block.
select {columns}, updated_at as key, (ctid::text::point)[0]::bigint as block
  from public.push_notifications
  where status::text in ('dead', 'expired', 'failed', 'cancelled')
    and updated_at between pg_catalog.to_timestamp(%(at)s::float8) and pg_catalog.to_timestamp(%(at)s::float8)
    and updated_at between %(since)s::timestamptz and %(until)s::timestamptz
    and (ctid >= %(beyond)s::tid or ctid >= %(within)s::tid and id > %(behind)s::uuid)
  order by updated_at
