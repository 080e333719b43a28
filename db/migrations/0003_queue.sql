-- push_notifications, the queue: created here, or adopted from an application that has one. One list of columns
-- serves both.
--
-- Nothing here rewrites or scans an adopted table, so its lock is held for milliseconds.

create table if not exists public.push_notifications (
  id uuid primary key
);

alter table public.push_notifications
  -- who
  add column if not exists user_id uuid,
  add column if not exists device_token text,
  add column if not exists topic text,
  add column if not exists condition text,
  -- what
  add column if not exists title text,
  add column if not exists body text,
  add column if not exists data jsonb,
  add column if not exists channel text,
  add column if not exists priority text default 'normal',
  add column if not exists image text,
  add column if not exists options jsonb,
  add column if not exists expires_at timestamptz,
  add column if not exists collapse_key text,
  add column if not exists idempotency_key text,
  -- when; without a default at first, so that existing rows stay out of the queue until the step "backlog"
  add column if not exists next_attempt_at timestamptz,
  -- state
  add column if not exists status text not null default 'pending',
  -- trail
  add column if not exists retry_count integer not null default 0,
  add column if not exists last_retry_at timestamptz,
  add column if not exists delivery_attempts integer not null default 0,
  add column if not exists last_error text,
  add column if not exists error_code text,
  add column if not exists fcm_message_id text,
  add column if not exists claimed_by integer,
  add column if not exists lost_claims integer not null default 0,
  add column if not exists push_first_due_at timestamptz,
  add column if not exists sent_at timestamptz,
  add column if not exists delivered_at timestamptz,
  add column if not exists created_at timestamptz not null default now(),
  add column if not exists updated_at timestamptz not null default now();

do $$
begin
  -- A required title or body stays required: a data message can have an empty one, which shows nothing.
  perform push_listener.adopt(
    'push_notifications',
    p_nullable => '{device_token,next_attempt_at,last_retry_at,last_error,error_code,fcm_message_id,claimed_by,push_first_due_at,sent_at,delivered_at}',
    p_optional => '{user_id,topic,condition,data,channel,priority,image,options,expires_at,collapse_key,idempotency_key}',
    p_defaults => '{"id": "gen_random_uuid()", "status": "''pending''", "next_attempt_at": "now()", "created_at": "now()",
                    "updated_at": "now()", "retry_count": "0", "delivery_attempts": "0", "lost_claims": "0"}',
    p_words => '{"status": ["pending", "processing", "sent", "delivered", "failed", "dead", "expired", "cancelled"],
                 "priority": ["normal", "high"]}',
    p_lengths => '{"status": 10, "last_error": null, "error_code": null, "fcm_message_id": null}');

  -- Each push is written three times: insert, claim, settle. With half of each page left free, the next version of a
  -- row fits on its page, and Postgres logs only the difference: 2,000 bytes of WAL for a push instead of 2,700. By
  -- default, autovacuum starts when a fifth of the table is dead. With millions of finished rows that is late, and
  -- the default cost limit makes it fall behind.
  perform push_listener.set_storage_defaults('push_notifications', '{
    "fillfactor": "50",
    "autovacuum_vacuum_scale_factor": "0.01", "autovacuum_vacuum_threshold": "1000",
    "autovacuum_analyze_scale_factor": "0.02", "autovacuum_analyze_threshold": "1000",
    "autovacuum_vacuum_cost_limit": "2000"}');

  if not push_listener.adopted('push_notifications') then
    alter table public.push_notifications
      -- Ids that begin with the time (UUID version 7) put new rows side by side in the indexes on them. With random
      -- ids, every push touches pages of its own, across indexes that grow with the history: with ten million
      -- finished rows an insert took 2.5 times as long as with ten thousand, a claim 1.6 times, a settle 1.4 times.
      -- PostgreSQL 18 has uuidv7().
      alter column id set default encode(set_bit(set_bit(overlay(
        uuid_send(gen_random_uuid())
        placing substring(int8send((1000 * extract(epoch from clock_timestamp()))::bigint) from 3) from 1
      ), 52, 1), 53, 1), 'hex')::uuid,
      alter column next_attempt_at set default now(),
      add constraint push_notifications_status_check check (status in
        ('pending', 'processing', 'sent', 'delivered', 'failed', 'dead', 'expired', 'cancelled')),
      enable row level security;
  end if;
end
$$;

-- Does the application let push-listener write? Everything that will be written to a row is written to one that waits,
-- and taken back: a trigger may refuse a status, or take it back, and a publication may refuse every update.
do $$
declare
  v_row constant uuid := (
    select b.definition::uuid from push_listener.adoption_record b
      where b.kind = 'trial' and b.relation = 'push_notifications');
  v_way text[];
  v_next text;
  v_before text;
  v_got text;
  v_claimed_by bigint;
  v_obstacles text[] := '{}';
begin
  if not push_listener.adopted('push_notifications') then
    return;
  end if;
  begin
    update public.push_notifications set status = status where false;
  exception when object_not_in_prerequisite_state then
    v_obstacles := array[format('%s; alter table public.push_notifications replica identity default, or full', sqlerrm)];
  end;
  foreach v_way slice 1 in array
    '{{processing,sent,delivered},{processing,failed,dead},{processing,pending,cancelled},{processing,expired,pending}}'::text[]
  loop
    exit when v_row is null or v_obstacles <> '{}' and v_before is null; -- no row waits, or no row can be updated
    begin
      v_before := 'pending';
      foreach v_next in array v_way loop
        -- Triggers run with the search_path of the application's sessions; the statement is parsed before that.
        with path as materialized (
          select set_config('search_path', null, true) as of_the_application
        ), tried as (
          update public.push_notifications
            set status = v_next,
                next_attempt_at = case when v_next in ('pending', 'processing', 'failed') then now() + interval '1 minute' end,
                claimed_by = case v_next when 'processing' then 1 else claimed_by end,
                delivery_attempts = coalesce(delivery_attempts, 0) + (v_next = 'processing')::integer,
                retry_count = coalesce(retry_count, 0) + (v_next = 'failed')::integer,
                error_code = case when v_next in ('failed', 'dead', 'expired') then 'UNAVAILABLE' end,
                last_error = case when v_next in ('failed', 'dead', 'expired') then 'FCM cannot be reached' end,
                sent_at = case v_next when 'sent' then now() else sent_at end,
                updated_at = now()
            from path
            where id = v_row
            returning status as got, claimed_by as claimed
        )
        select t.got, t.claimed from (select) one left join tried t on true into v_got, v_claimed_by;
        set constraints all immediate;
        set local search_path = pg_catalog, pg_temp;
        if not exists (select from public.push_notifications where id = v_row) then
          exit; -- it was deleted meanwhile
        end if;
        if v_got is distinct from v_next then
          v_obstacles := v_obstacles || format('a trigger takes back what is written: status %L becomes %L instead of %L',
                                               v_before, coalesce(v_got, v_before), v_next);
          exit;
        elsif v_claimed_by is distinct from 1 then
          v_obstacles := v_obstacles || 'a trigger takes back what is written in claimed_by'::text;
          exit;
        end if;
        v_before := v_next;
      end loop;
      raise exception using errcode = 'PLTRY'; -- takes it all back
    exception
      when sqlstate 'PLTRY' then
        null;
      when lock_not_available then
        raise; -- and the step is tried again
      when others then
        v_obstacles := v_obstacles || format('status %L cannot become %L: %s', v_before, v_next, sqlerrm);
    end;
  end loop;
  if v_obstacles <> '{}' then
    raise exception using
      errcode = 'object_not_in_prerequisite_state',
      message = 'push_notifications does not take what push-listener writes',
      detail = (select string_agg(distinct '- ' || o, E'\n') from unnest(v_obstacles) o),
      hint = format('No table of the application has been changed. Let its triggers pass what %I and the role push_listener write, then run this again.',
                    current_user);
  end if;
end
$$;

-- Rows that the database does not let push-listener write: a trigger of the application raises an error, ignores the
-- write or changes it, or an index or a constraint refuses it. No worker claims such a row before "until".
create table push_listener.unwritable_rows (
  push_id uuid primary key,
  statement text not null check (statement in ('claim', 'settle')),
  code text not null,
  times integer not null default 1,
  noted_at timestamptz not null default now(),
  until timestamptz not null
);
comment on column push_listener.unwritable_rows.statement is
  'What could not be written: "claim": nothing has been sent, and the claim is tried again at "until"; "settle": the push may have been sent, and is not sent again unless requeue_pushes names it.';
comment on column push_listener.unwritable_rows.code is
  'The SQLSTATE of the error, or IGNORED or CHANGED: a trigger of the application ignored or changed what was written.';

\ir ../functions/push_listener/unclaimable.sql

-- Columns of the application keep the application's comments.
do $$
declare
  found record;
begin
  for found in
    select * from (values
      ('next_attempt_at', 'When to look at this row next; NULL: nothing more to do. New: now() or the time it is scheduled for; claimed: the end of its lease; failed: its next try.'),
      ('delivery_attempts', 'How often the row has been claimed; with claimed_by the fence that keeps a late worker from settling a row it lost.'),
      ('lost_claims', 'Claims that ended without a result: the worker died, or its lease ran out. A push that many workers did not survive is suspected of killing them.'),
      ('push_first_due_at', 'When a push that is being tried was due before its first try, for the metric of its delay; NULL before the first claim and after the end.'),
      ('retry_count', 'Tries used up. A pause, a shutdown or a lost worker uses none.')
    ) as about(name, remark)
    where not exists (
      select from push_listener.adoption_record b
        where b.kind = 'column' and b.relation = 'push_notifications' and b.name = about.name)
  loop
    execute format('comment on column public.push_notifications.%I is %L', found.name, found.remark);
  end loop;
end
$$;
