-- The dead and expired pushes with an error code, the last changed first.
--
-- The code is compared as a range (>= and <=). For "=" Postgres would drop the code from the order, and might read the
-- index of all pushes that are given up, and skip most entries. The index holds the first 65 characters of a code. The
-- code in a filter has at most 64.
select {columns}, updated_at as key, (ctid::text::point)[0]::bigint as block
  from public.push_notifications
  where pg_catalog.left(error_code::text, 65) >= %(code)s::text and pg_catalog.left(error_code::text, 65) <= %(code)s::text
    and status::text in ('dead', 'expired')
    and updated_at between pg_catalog.to_timestamp(%(at_least)s::float8) and pg_catalog.to_timestamp(%(at)s::float8)
    and updated_at between %(since)s::timestamptz and %(until)s::timestamptz
    and (updated_at < pg_catalog.to_timestamp(%(at)s::float8)
         or ctid >= %(beyond)s::tid or ctid >= %(within)s::tid and id > %(behind)s::uuid)
  order by pg_catalog.left(error_code::text, 65), updated_at desc
