-- What people did, the newest first. "affected" says how many ids there are; those of a batch may be a thousand.
select a.id, a.at, a.who, a.what, a.filter, a.reason, a.affected, a.ids[1:20] as ids, a.run
  from push_listener.actions a
  where %(before)s::bigint is null or a.id < %(before)s::bigint
  order by a.id desc
  limit %(limit)s::bigint
