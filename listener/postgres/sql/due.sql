-- The rows that a claim takes: the due rows from a certain due time on, and some that were found before it (early); see
-- frontier.py.
--
-- lock_timeout is set inside the statement because a transaction pooler loses SET: a trigger of the application may
-- wait for a lock. A LIMIT is evaluated before the first row is read.
--
-- The commit of a claim does not wait for the disk or for a replica (synchronous_commit), so that requests begin
-- earlier. If Postgres crashes before the claim is on disk, the row is as it was before; see settlements.py.
--
-- OFFSET 0 makes "not exists" a search of the index for each row. Without it, Postgres would turn it into a join, which
-- loses the order of the index, and then it would read and sort all due rows. If the rows that cannot be written do not
-- fit into work_mem, "not in" would compare each due row with each of them.
--
-- The cardinality is compared before anything is read. So a plan that reads the whole table, because it was made while
-- the table was small, costs nothing as long as no early row was found. coalesce() keeps Postgres from searching for
-- these ids in the index of due rows, which Postgres takes for small, and which is long while there is an old snapshot.
early as materialized (
  select id, next_attempt_at as due_at, (case priority::text when 'high' then 0 else 1 end) as lane,
         coalesce(delivery_attempts, 0) + 1 as attempt
    from public.push_notifications
    where pg_catalog.cardinality(%(early)s::uuid[]) > 0
      and id = any(%(early)s::uuid[])
      and coalesce(next_attempt_at <= pg_catalog.now() and next_attempt_at < pg_catalog.to_timestamp(
        case priority::text when 'high' then %(from_high)s::float8 else %(from_normal)s::float8 end), false)
      and status::text in ('pending', 'processing', 'failed')
      and id <> all(%(excluded)s::uuid[])
      and not exists (select from push_listener.unwritable_rows u
                        where u.push_id = push_notifications.id and u.until > pg_catalog.now() offset 0)
    limit case when pg_catalog.set_config('lock_timeout', '200ms', true) is not null
                and pg_catalog.set_config('synchronous_commit', 'off', true) is not null
               then least(%(limit)s::bigint, %(normal_limit)s::bigint) end
    for no key update skip locked
), high as materialized (
  select id, next_attempt_at as due_at, 0 as lane, coalesce(delivery_attempts, 0) + 1 as attempt
    from public.push_notifications
    where (case priority::text when 'high' then 0 else 1 end) = 0 and next_attempt_at <= pg_catalog.now()
      and next_attempt_at >= pg_catalog.to_timestamp(%(from_high)s::float8)
      and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
      and id <> all(%(excluded)s::uuid[])
      and not exists (select from push_listener.unwritable_rows u
                        where u.push_id = push_notifications.id and u.until > pg_catalog.now() offset 0)
    order by next_attempt_at
    limit %(limit)s::bigint - (select pg_catalog.count(*) from early)
    for no key update skip locked
), normal as materialized (
  select id, next_attempt_at as due_at, 1 as lane, coalesce(delivery_attempts, 0) + 1 as attempt
    from public.push_notifications
    where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at <= pg_catalog.now()
      and next_attempt_at >= pg_catalog.to_timestamp(%(from_normal)s::float8)
      and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
      and id <> all(%(excluded)s::uuid[])
      and not exists (select from push_listener.unwritable_rows u
                        where u.push_id = push_notifications.id and u.until > pg_catalog.now() offset 0)
    order by next_attempt_at
    limit least(%(normal_limit)s::bigint - (select pg_catalog.count(*) from early e where e.lane = 1),
                %(limit)s::bigint - (select pg_catalog.count(*) from early) - (select pg_catalog.count(*) from high))
    for no key update skip locked
), due as (
  select * from early union all select * from high union all select * from normal
)
