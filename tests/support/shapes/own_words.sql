-- Statuses of its own in a varchar, a default that is not 'pending', and columns that happen to be named as ours are.

create table public.push_notifications (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null,
  title varchar(100) not null,
  body varchar(500),
  "data" json,
  priority varchar(10) not null default 'normal' constraint levels check (priority in ('low', 'normal')),
  channel varchar(20) constraint channels check (channel in ('general', 'offers')),
  status varchar(20) not null default 'queued'
    constraint words check (status in ('queued', 'pending', 'sent', 'failed', 'read')),
  retry_count smallint default 0,
  sent_at timestamptz,
  read_at timestamptz,
  last_error varchar(40),
  created_at timestamptz not null default now(),
  updated_at timestamptz,
  constraint sent_has_a_time check (status <> 'sent' or sent_at is not null)
);
create index by_status on public.push_notifications (status);
create index unread on public.push_notifications (user_id) where status = 'sent' and read_at is null;
create view public.unread_pushes with (security_invoker = true) as
  select user_id, count(*) as pushes from public.push_notifications where status = 'sent' and read_at is null group by 1;
alter table public.push_notifications enable row level security;
create policy "own" on public.push_notifications for select to authenticated using (user_id = (select auth.uid()));
create policy "read" on public.push_notifications for update to authenticated
  using (user_id = (select auth.uid()) and status in ('sent', 'read'))
  with check (user_id = (select auth.uid()) and status = 'read');
grant select, update (status, read_at) on public.push_notifications to authenticated;

-- It has functions of our names too, which can be told from ours.
create function public.register_device(p_user uuid, p_token text, p_model text) returns void language sql as 'select';
create function public.cancel_push(p_user_id uuid, p_reason text) returns void language sql as 'select';

insert into public.push_notifications (id, user_id, title, status, retry_count, sent_at, read_at, last_error, created_at) values
  ('00000000-0000-4000-8000-000000000001', 'a0000000-0000-4000-8000-00000000000a', 'untouched', 'read', 0, now() - interval '2 days', now(), null, now() - interval '2 days'),
  ('00000000-0000-4000-8000-000000000002', 'a0000000-0000-4000-8000-00000000000a', 'untouched', 'sent', 1, now(), null, null, now()),
  ('00000000-0000-4000-8000-000000000003', 'a0000000-0000-4000-8000-00000000000a', 'untouched', 'queued', 0, null, null, null, now()),
  ('00000000-0000-4000-8000-000000000004', 'a0000000-0000-4000-8000-00000000000a', 'untouched', 'queued', 0, null, null, null, now() - interval '3 days'),
  ('00000000-0000-4000-8000-000000000005', 'a0000000-0000-4000-8000-00000000000a', 'untouched', 'failed', 3, null, null, 'no such token', now() - interval '3 days'),
  ('00000000-0000-4000-8000-000000000006', 'a0000000-0000-4000-8000-00000000000a', 'sent', 'pending', 0, null, null, null, now()),
  ('00000000-0000-4000-8000-000000000007', 'a0000000-0000-4000-8000-00000000000a', 'sent', 'pending', null, null, null, 'busy', now()),
  ('00000000-0000-4000-8000-000000000008', 'a0000000-0000-4000-8000-00000000000a', 'expired', 'pending', 0, null, null, null, now() - interval '3 days');

create table public.telemetry_logs (
  id bigserial primary key,
  type varchar(30) not null,
  message text not null,
  meta jsonb not null default '{}',
  timestamp timestamptz not null default now(),
  user_id uuid not null
);
insert into public.telemetry_logs (type, message, user_id) values
  ('error', 'it broke', 'a0000000-0000-4000-8000-00000000000a');
