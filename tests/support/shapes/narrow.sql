-- Everything too short or too strict: what push-listener writes would not fit.

create table public.push_notifications (
  id uuid not null unique,
  user_id uuid not null,
  device_token varchar(64) not null,
  title varchar(60) not null,
  body varchar(200) not null,
  data jsonb not null,
  channel text not null default 'general',
  priority text not null default 'normal' check (priority = any (array['normal'])),
  status varchar(6) not null default 'unsent' constraint short_words check (status in ('unsent', 'pendin', 'sent')),
  next_attempt_at timestamptz not null default now(),
  last_error varchar(10) not null default '',
  created_at timestamptz not null
);
create index push_notifications_by_status on public.push_notifications (status);
insert into public.push_notifications (id, user_id, device_token, title, body, data, status, created_at) values
  ('00000000-0000-4000-8000-000000000001', 'a0000000-0000-4000-8000-00000000000a', 't', 'untouched', 'b', '{}', 'sent', now()),
  ('00000000-0000-4000-8000-000000000002', 'a0000000-0000-4000-8000-00000000000a', 't', 'untouched', 'b', '{}', 'unsent', now());

create table public.push_delivery_logs (
  id uuid primary key,
  push_id uuid not null,
  device_token varchar(20) not null,
  status varchar(6) not null check (status in ('sent', 'failed')),
  details jsonb,
  created_at timestamptz not null
);
insert into public.push_delivery_logs values
  ('10000000-0000-4000-8000-000000000001', '00000000-0000-4000-8000-000000000001', 't', 'sent', null, now());

create table public.push_devices (
  id uuid primary key,
  token varchar(30) not null unique,
  user_id uuid not null,
  platform varchar(3) not null check (platform in ('ios', 'and')),
  created_at timestamptz not null
);
insert into public.push_devices values
  ('30000000-0000-4000-8000-000000000001', 'phone-of-a', 'a0000000-0000-4000-8000-00000000000a', 'and', now());

-- Brought along in place of ours.
create table public.phones (owner uuid not null, token text primary key, kind varchar(10));
insert into public.phones values ('a0000000-0000-4000-8000-00000000000a', 'phone-of-a', 'android');
create view public.push_recipients with (security_invoker = true) as
  select owner as user_id, token, kind as platform from public.phones;
create function public.push_disable_token(p_token text, p_reason text) returns void language sql set search_path = pg_catalog, pg_temp
  as 'delete from public.phones where token = p_token';
