-- The pushes among these for which the log does not hold, where a claim looks for it, that the device has accepted
-- them. The hashed subplan reads the log rows of a push once, however many devices the push has; see log.sql.
select distinct r.push_id
  from unnest(%(ids)s::uuid[], %(tokens)s::text[]) as r(push_id, token)
  where (r.push_id, r.token) not in (
    select w.push_id, o.token
      from (select distinct push_id from pg_catalog.unnest(%(ids)s::uuid[]) as i(push_id)) as w
      cross join lateral (
        select coalesce(l.device_token::text, '') as token
          from public.push_delivery_logs l
          where l.push_id = w.push_id and l.status::text = 'sent'
          offset 0) as o)
