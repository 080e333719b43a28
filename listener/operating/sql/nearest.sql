-- For each priority: the waiting pushes that are due soonest, and those that became due last.
(select {columns} from public.push_notifications
   where (case priority::text when 'high' then 0 else 1 end) = 0 and next_attempt_at <= pg_catalog.now()
     and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
   order by (case priority::text when 'high' then 0 else 1 end) desc, next_attempt_at desc limit %(near)s::bigint)
union all
(select {columns} from public.push_notifications
   where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at <= pg_catalog.now()
     and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
   order by (case priority::text when 'high' then 0 else 1 end) desc, next_attempt_at desc limit %(near)s::bigint)
union all
(select {columns} from public.push_notifications
   where (case priority::text when 'high' then 0 else 1 end) = 0 and next_attempt_at > pg_catalog.now()
     and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
   order by (case priority::text when 'high' then 0 else 1 end), next_attempt_at limit %(near)s::bigint)
union all
(select {columns} from public.push_notifications
   where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at > pg_catalog.now()
     and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
   order by (case priority::text when 'high' then 0 else 1 end), next_attempt_at limit %(near)s::bigint)
