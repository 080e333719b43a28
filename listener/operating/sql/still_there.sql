-- What has become of pushes that were handed out: their status, and the times by which indexes have them in order.
select p.id, p.status::text as status, extract(epoch from p.created_at)::float8 as created_at,
    extract(epoch from p.updated_at)::float8 as updated_at, extract(epoch from p.next_attempt_at)::float8 as due_at
  from public.push_notifications p
  where p.id = any(%(ids)s::uuid[])
