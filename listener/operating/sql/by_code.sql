-- The dead and expired pushes with an error code, those that changed last first.
select {columns}, updated_at as key
  from public.push_notifications
  where error_code::text = %(code)s::text and status::text in ('dead', 'expired')
    and updated_at between pg_catalog.to_timestamp(%(at_least)s::float8) and pg_catalog.to_timestamp(%(at)s::float8)
    and updated_at between %(since)s::timestamptz and %(until)s::timestamptz
  order by error_code::text, updated_at desc
