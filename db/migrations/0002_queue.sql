-- push_notifications: the queue. Made here, or adopted from an application that has one; one list of columns serves both.

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
  -- when; without a default at first, so that rows which are there already stay out of the queue
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
  add column if not exists sent_at timestamptz,
  add column if not exists delivered_at timestamptz,
  add column if not exists created_at timestamptz not null default now(),
  add column if not exists updated_at timestamptz not null default now();

alter table public.push_notifications
  alter column status set default 'pending',
  alter column next_attempt_at set default now(),
  alter column created_at set default now();

comment on column public.push_notifications.next_attempt_at is
  'Look at this row then; NULL: nothing more to do. New: now() or the time it is scheduled for; claimed: the end of its lease; failed: its next try.';
comment on column public.push_notifications.delivery_attempts is
  'How often the row has been claimed; with claimed_by the fence that keeps a late worker from settling a row it lost.';
comment on column public.push_notifications.retry_count is
  'Tries used up. A pause, a shutdown or a lost worker uses none.';

-- The checks on status that an application has are widened, not replaced: what they allowed stays allowed.
do $$
declare
  old record;
begin
  for old in
    select name, definition from push_listener.before where kind = 'check' and relation = 'push_notifications'
  loop
    execute format('alter table public.push_notifications drop constraint %I', old.name);
    execute format(
      'alter table public.push_notifications add constraint %I check ((%s) or status in '
      '(''pending'', ''processing'', ''sent'', ''delivered'', ''failed'', ''dead'', ''expired'', ''cancelled'')) not valid',
      old.name, old.definition);
  end loop;
  if not exists (select from push_listener.before where kind = 'table' and relation = 'push_notifications') then
    alter table public.push_notifications
      add constraint push_notifications_status_check check (status in
        ('pending', 'processing', 'sent', 'delivered', 'failed', 'dead', 'expired', 'cancelled'));
    alter table public.push_notifications enable row level security;
  end if;
end
$$;

-- Rows that were waiting when the queue was adopted: a day's worth is sent, what is older has lost its meaning and
-- expires. (A queue that nobody emptied for months must not be poured over people's phones.)
update public.push_notifications
  set next_attempt_at = now()
  where status = 'pending' and next_attempt_at is null and created_at > now() - interval '1 day';
update public.push_notifications
  set status = 'expired', last_error = 'was waiting for more than a day when push-listener was installed',
      error_code = 'STALE_AT_ADOPTION'
  where status = 'pending' and next_attempt_at is null;
