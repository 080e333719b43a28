select a.id, a.at, a.who, a.what, a.filter, a.reason, a.affected, coalesce(a.ids, '{}') as ids, a.run
  from push_listener.actions a
  where %(before)s::bigint is null or a.id < %(before)s::bigint
  order by a.id desc
  limit %(limit)s::bigint
