-- The waiting pushes of one priority, in the order in which they are due: all of them (span "any"), those that are not
-- due yet ("ahead"), or those that are due ("behind").
select {columns}, next_attempt_at as key, (ctid::text::point)[0]::bigint as block
  from public.push_notifications
  where (case priority::text when 'high' then 0 else 1 end) = %(lane)s::integer
    and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
    and next_attempt_at >= pg_catalog.to_timestamp(%(at)s::float8)
    and next_attempt_at >= case when %(span)s::text = 'ahead' then pg_catalog.now() else '-infinity'::timestamptz end
    and next_attempt_at <= case when %(span)s::text = 'behind' then pg_catalog.now() else 'infinity'::timestamptz end
    and (next_attempt_at > pg_catalog.to_timestamp(%(at)s::float8)
         or ctid >= %(beyond)s::tid or ctid >= %(within)s::tid and id > %(behind)s::uuid)
  order by (case priority::text when 'high' then 0 else 1 end), next_attempt_at
