-- Columns that have to be of another kind.

create type public.push_status as enum ('pending', 'sent', 'failed');
create table public.push_notifications (
  id bigint generated always as identity,
  status public.push_status not null default 'pending',
  data text,
  retry_count integer generated always as (0) stored,
  delivery_attempts smallint,
  created_at timestamp not null default now()
);
insert into public.push_notifications (data) values ('kept');

create table public.push_devices (
  id uuid primary key default gen_random_uuid(),
  fcm_token text
);
