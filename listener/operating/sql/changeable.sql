-- Which of these pushes an action would change now, in the order of the ids. The conditions repeat those of
-- operator_requeue and operator_cancel.
select p.id
  from pg_catalog.unnest(%(ids)s::uuid[]) with ordinality as wanted(id, place)
  join public.push_notifications p on p.id = wanted.id
  where case %(what)s::text
          when 'requeue' then
            (p.status::text in ('dead', 'expired', 'failed', 'cancelled')
               or (select true from push_listener.unwritable_rows u where u.push_id = p.id limit 1))
            and (p.expires_at is null or p.expires_at > pg_catalog.now())
          else p.status::text in ('pending', 'failed') end
  order by wanted.place
