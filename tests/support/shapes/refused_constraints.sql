-- Rules of the application's that push-listener would break.

create table public.push_notifications (
  id uuid primary key,
  user_id uuid,
  status varchar(7) not null default 'pending',
  last_error varchar(80),
  idempotency_key text,
  retry_count integer not null default 0 check (retry_count <= 3),
  sent_at timestamptz,
  constraint sent_or_not check ((status = 'sent') = (sent_at is not null))
);
create policy "own" on public.push_notifications for select using (status = 'sent');
create view public.errors as select last_error from public.push_notifications;
insert into public.push_notifications (id, idempotency_key) values
  (gen_random_uuid(), 'twice'), (gen_random_uuid(), 'twice'), (gen_random_uuid(), 'once'), (gen_random_uuid(), null);

create table public.push_delivery_logs (
  id bigint primary key,
  push_id uuid unique,
  device_token text,
  status text,
  provider text not null,
  unique (push_id, device_token),
  unique (push_id, device_token, provider)
);
