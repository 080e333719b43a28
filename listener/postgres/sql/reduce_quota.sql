-- Reduces the shared quota, at most once a second for all workers together, and never above what has recovered by now.
--
-- A time in the future was written before the clock was set back, and is ignored.
update push_listener.shared_quota
  set fraction = case when reduced_at > pg_catalog.clock_timestamp() then %(fraction)s::float8
                  else least(%(fraction)s::float8,
                             fraction + extract(epoch from pg_catalog.clock_timestamp() - reduced_at)::float8
                                    / %(recovery)s::float8) end,
      reduced_at = pg_catalog.clock_timestamp()
  where reduced_at not between pg_catalog.clock_timestamp() - interval '1 second'
                           and pg_catalog.clock_timestamp()
