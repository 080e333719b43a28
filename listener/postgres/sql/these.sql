-- The rows that a claim takes: some that the same transaction has locked because they were due. Since then, a trigger
-- of the application that fired for another row may have changed them.
due as materialized (
  select id, next_attempt_at as due_at, (case priority::text when 'high' then 0 else 1 end) as lane,
         coalesce(delivery_attempts, 0) + 1 as attempt
    from public.push_notifications
    where id = any(%(ids)s::uuid[]) and next_attempt_at <= pg_catalog.now()
      and status::text in ('pending', 'processing', 'failed')
)
