-- push_notifications: the queue. Made here, or adopted from an application that has one; one list of columns serves both.
--
-- Nothing here rewrites or scans a table that is there, so the lock that it takes is held for milliseconds.

create table if not exists public.push_notifications (
  id uuid primary key default gen_random_uuid()
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
  -- when; without a default at first, so that rows which are there already stay out of the queue until 0008
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
  add column if not exists sent_at timestamptz,
  add column if not exists delivered_at timestamptz,
  add column if not exists created_at timestamptz not null default now(),
  add column if not exists updated_at timestamptz not null default now();

do $$
begin
  -- A title or body that is required stays so: an empty one shows nothing, and is not in the way of a data message.
  perform push_listener.adopt(
    'push_notifications',
    p_nullable => '{device_token,next_attempt_at,last_retry_at,last_error,error_code,fcm_message_id,claimed_by,sent_at,delivered_at}',
    p_optional => '{user_id,topic,condition,data,channel,priority,image,options,expires_at,collapse_key,idempotency_key}',
    p_defaults => '{"id": "gen_random_uuid()", "status": "''pending''", "next_attempt_at": "now()", "created_at": "now()",
                    "retry_count": "0", "delivery_attempts": "0", "lost_claims": "0"}',
    p_words => '{"status": ["pending", "processing", "sent", "delivered", "failed", "dead", "expired", "cancelled"],
                 "priority": ["normal", "high"]}',
    p_lengths => '{"status": 10, "last_error": null, "error_code": null, "fcm_message_id": null}');

  -- Each push is written three times: insert, claim, settle. With half of each page left free, a row's next version
  -- finds room beside it, and of such a version Postgres logs only what differs: 2,000 bytes of WAL a push instead of
  -- 2,700. Left to its defaults, autovacuum comes when a fifth of the table is dead, which in one with millions of
  -- finished rows is late, and then works so gently that it falls behind.
  perform push_listener.tune('push_notifications', '{
    "fillfactor": "50",
    "autovacuum_vacuum_scale_factor": "0.01", "autovacuum_vacuum_threshold": "1000",
    "autovacuum_analyze_scale_factor": "0.02", "autovacuum_analyze_threshold": "1000",
    "autovacuum_vacuum_cost_limit": "2000"}');

  if not push_listener.adopted('push_notifications') then
    alter table public.push_notifications
      alter column next_attempt_at set default now(),
      add constraint push_notifications_status_check check (status in
        ('pending', 'processing', 'sent', 'delivered', 'failed', 'dead', 'expired', 'cancelled')),
      enable row level security;
  end if;
end
$$;

-- Columns that the application had keep what it says of them.
do $$
declare
  found record;
begin
  for found in
    select * from (values
      ('next_attempt_at', 'Look at this row then; NULL: nothing more to do. New: now() or the time it is scheduled for; claimed: the end of its lease; failed: its next try.'),
      ('delivery_attempts', 'How often the row has been claimed; with claimed_by the fence that keeps a late worker from settling a row it lost.'),
      ('lost_claims', 'Claims that ended without a result: the worker died, or its lease ran out. A push that many workers did not outlive is suspected of killing them.'),
      ('retry_count', 'Tries used up. A pause, a shutdown or a lost worker uses none.')
    ) as about(name, remark)
    where not exists (
      select from push_listener.before b
        where b.kind = 'column' and b.relation = 'push_notifications' and b.name = about.name)
  loop
    execute format('comment on column public.push_notifications.%I is %L', found.name, found.remark);
  end loop;
end
$$;
