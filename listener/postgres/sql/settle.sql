-- Writes the results of a batch and its log rows; returns the positions in the batch of the results that were written,
-- and of those that a trigger has changed.
--
-- The fence: a row is written only while this worker holds it, for the attempt that the worker made. A row that another
-- worker has claimed since gets its log rows all the same, because the requests were made. If a settle whose answer was
-- lost is repeated, the row is settled already, and no second log row is written.
--
-- A trigger of the application may change the update, so the row that was returned is compared with the result. If a
-- changed result was final, its row is noted at once, so that no worker sends it again. If the row is to be tried
-- again, the comparison covers all columns that decide when, how often and to which devices. The subselect reads the
-- row as it was before.
--
-- Arrays are sent in binary (%b), which costs psycopg a tenth of writing and escaping them as text.
--
-- The values that the fence compares are columns of "result". With constants, Postgres would estimate that hardly any
-- row passes the fence, and on a table without statistics it would compare every row with every result.
--
-- lock_timeout is set inside the statement because a transaction pooler loses SET. The CTE is MATERIALIZED so that the
-- timeout applies before the first row lock. enable_seqscan is for the check of the foreign key of the logs: its plan
-- is made after the statement, and a session keeps it, also if it was made while the table was small. Sessions of the
-- service have the setting anyway, but not those behind a transaction pooler.
with result as materialized (
  select r.*, %(worker)s::integer as worker, 'processing' as held
    from (select pg_catalog.set_config('lock_timeout', '200ms', true),
                 pg_catalog.set_config('enable_seqscan', 'off', true)) as patience,
      unnest(%(ids)b::uuid[], %(attempts)b::integer[], %(statuses)b::text[], %(delays)b::float8[],
             %(tries)b::boolean[], %(codes)b::text[], %(reasons)b::text[], %(message_ids)b::text[])
        with ordinality as r(id, attempt, status, delay, uses_try, code, reason, message_id, position)
), settled as (
  update public.push_notifications p
    -- A receipt may arrive before the result is written.
    set status = case when r.status = 'sent' and p.delivered_at is not null then 'delivered'
                      else r.status end,
        next_attempt_at = pg_catalog.now() + pg_catalog.make_interval(secs => r.delay),
        retry_count = coalesce(p.retry_count, 0) + r.uses_try::integer,
        error_code = r.code,
        last_error = r.reason,
        fcm_message_id = coalesce(r.message_id, p.fcm_message_id),
        push_first_due_at = case when r.delay is not null then p.push_first_due_at end,
        sent_at = case when r.status = 'sent' then pg_catalog.now() else p.sent_at end,
        updated_at = pg_catalog.now()
    from result r
    where p.id = r.id and p.claimed_by = r.worker and p.delivery_attempts = r.attempt and p.status::text = r.held
    returning p.id, r.position, r.delay is null as is_final,
      case when r.delay is null then
        p.status::text = r.status or r.status = 'sent' and p.status::text = 'delivered'
      else coalesce(
        p.status::text in ('pending', 'failed') and p.next_attempt_at < 'infinity'::timestamptz
        and p.delivery_attempts = r.attempt
        and (not r.uses_try or p.retry_count > (
          select coalesce(o.retry_count, 0) from public.push_notifications o where o.id = r.id)), false)
      end as is_written
), noted as (
  insert into push_listener.unwritable_rows as u (push_id, statement, code, until)
  select id, 'settle', 'CHANGED', 'infinity'::timestamptz
    from settled
    where is_final and not is_written
  on conflict (push_id) do update
    set statement = excluded.statement, code = excluded.code, times = u.times + 1, noted_at = pg_catalog.now(),
        until = excluded.until
), logged as (
  {log}
)
select coalesce(pg_catalog.array_agg(position) filter (where is_written), array[]::bigint[]) as written,
    coalesce(pg_catalog.array_agg(position) filter (where not is_written), array[]::bigint[]) as changed
  from settled
