-- Expires pushes past expires_at among the first rows of the queue, from a certain due time on (see frontier.py);
-- returns their number.
--
-- It reads a bounded number of due rows of each lane, so that a few expired rows before a long backlog cost little. A
-- push to several devices that FCM has accepted for one of them ends as sent, so it is left to a claim.
--
-- OFFSET 0: see due.sql.
--
-- lock_timeout is set for what triggers of the application may wait for; see settle.sql.
with bounds as materialized (
  select %(rows)s::bigint as rows, pg_catalog.set_config('lock_timeout', '200ms', true)
), front as materialized (
  (select id, expires_at
     from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 0 and next_attempt_at <= pg_catalog.now()
       and next_attempt_at >= pg_catalog.to_timestamp(%(from_high)s::float8)
       and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
       and id <> all(%(excluded)s::uuid[])
       and not exists (select from push_listener.unwritable_rows u
                         where u.push_id = push_notifications.id and u.until > pg_catalog.now() offset 0)
     order by next_attempt_at
     limit (select b.rows from bounds b))
  union all
  (select id, expires_at
     from public.push_notifications
     where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at <= pg_catalog.now()
       and next_attempt_at >= pg_catalog.to_timestamp(%(from_normal)s::float8)
       and next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
       and id <> all(%(excluded)s::uuid[])
       and not exists (select from push_listener.unwritable_rows u
                         where u.push_id = push_notifications.id and u.until > pg_catalog.now() offset 0)
     order by next_attempt_at
     limit (select b.rows from bounds b))
), over as materialized (
  select p.id
    from public.push_notifications p
    where p.id = any(array(select f.id from front f where f.expires_at <= pg_catalog.now()))
      and p.expires_at <= pg_catalog.now() and p.next_attempt_at <= pg_catalog.now()
      and p.status::text in ('pending', 'processing', 'failed')
      and (p.device_token is not null or p.fid is not null or p.topic is not null or p.condition is not null
           or coalesce(p.delivery_attempts, 0) = 0
           or not exists (select from public.push_delivery_logs l where l.push_id = p.id and l.status::text = 'sent'))
    for no key update of p skip locked
), expired as (
  update public.push_notifications p
    set status = 'expired',
        next_attempt_at = null,
        push_first_due_at = null,
        error_code = 'EXPIRED',
        last_error = %(reason)s,
        updated_at = pg_catalog.now()
    from over
    where p.id = over.id
    returning p.id
)
select pg_catalog.count(*) from expired
