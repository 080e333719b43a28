-- The pushes of a user, the newest first. The user is compared as a range, for the reason in by_code.sql.
select {columns}, created_at as key, 0::bigint as block
  from public.push_notifications
  where user_id >= %(user)s::uuid and user_id <= %(user)s::uuid and user_id is not null
    and created_at between pg_catalog.to_timestamp(%(at_least)s::float8) and pg_catalog.to_timestamp(%(at)s::float8)
    and (created_at < pg_catalog.to_timestamp(%(at)s::float8) or id > %(behind)s::uuid)
  order by user_id, created_at desc, id
