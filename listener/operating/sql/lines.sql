-- Pushes by their ids, in the order of the ids.
select {line}
  from pg_catalog.unnest(%(ids)s::uuid[]) with ordinality as wanted(id, place)
  join public.push_notifications p on p.id = wanted.id
  order by wanted.place
