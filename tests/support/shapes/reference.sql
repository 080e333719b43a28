-- An application's queue in daily use: RLS with policies of its owner, functions and triggers of its own, tokens in
-- profiles. In every shape here a row's title says what adoption makes of it: sent, expired or untouched.

create table public.profiles (
  id uuid primary key,
  fcm_token text
);
insert into public.profiles values
  ('a0000000-0000-4000-8000-00000000000a', 'phone-of-a'),
  ('b0000000-0000-4000-8000-00000000000b', null);
alter table public.profiles enable row level security;
create policy "own profile" on public.profiles for all to authenticated
  using (id = (select auth.uid())) with check (id = (select auth.uid()));
grant select, update on public.profiles to authenticated;
grant all on public.profiles to service_role;

create table public.push_notifications (
  id uuid primary key default gen_random_uuid(),
  driver_id uuid,
  user_id uuid,
  title text not null,
  body text not null,
  data jsonb,
  channel text default 'general',
  priority text default 'normal',
  status text not null default 'pending' check (status in ('pending', 'sent', 'failed')),
  attempts smallint,
  last_error text,
  created_at timestamptz default now(),
  updated_at timestamptz default now()
);
comment on column public.push_notifications.status is 'What the drivers'' app shows.';

create function public.touch_updated_at() returns trigger language plpgsql as $$
begin
  new.updated_at := now();
  return new;
end
$$;
create trigger touch before update on public.push_notifications
  for each row execute function public.touch_updated_at();

alter table public.push_notifications enable row level security;
create policy "drivers add" on public.push_notifications for insert to authenticated
  with check (driver_id = (select auth.uid()));
create policy "drivers see" on public.push_notifications for select to authenticated
  using (driver_id = (select auth.uid()));
create policy "drivers change" on public.push_notifications for update to authenticated
  using (driver_id = (select auth.uid()));
grant select, insert, update on public.push_notifications to authenticated;
grant all on public.push_notifications to service_role;

create function public.enqueue_push_notification(
  p_driver_id uuid, p_user_id uuid, p_title text, p_body text, p_data jsonb default '{}', p_channel text default 'general'
) returns uuid language plpgsql security definer set search_path = public as $$
declare
  v_id uuid;
begin
  insert into push_notifications (driver_id, user_id, title, body, data, channel)
    values (p_driver_id, p_user_id, p_title, p_body, p_data, p_channel)
    returning id into v_id;
  return v_id;
end
$$;

create function public.mark_push_sent(p_push_id uuid, p_status text) returns void language sql as $$
  update public.push_notifications set status = p_status, attempts = coalesce(attempts, 0) + 1 where id = p_push_id
$$;

-- Its own trigger, which calls its own function.
create table public.trips (id bigint primary key, driver_id uuid, user_id uuid);
create function public.tell_driver() returns trigger language plpgsql as $$
begin
  perform public.enqueue_push_notification(new.driver_id, new.user_id, 'trip', 'A new trip');
  return null;
end
$$;
create trigger tell_driver after insert on public.trips for each row execute function public.tell_driver();

insert into public.push_notifications (id, driver_id, user_id, title, body, data, status, attempts, last_error, created_at, updated_at) values
  ('00000000-0000-4000-8000-000000000001', 'a0000000-0000-4000-8000-00000000000a', 'a0000000-0000-4000-8000-00000000000a',
   'untouched', 'sent long ago', '{"a": 1}', 'sent', 1, null, now() - interval '90 days', now() - interval '90 days'),
  ('00000000-0000-4000-8000-000000000002', 'a0000000-0000-4000-8000-00000000000a', 'a0000000-0000-4000-8000-00000000000a',
   'untouched', 'sent just now', null, 'sent', 1, null, now() - interval '1 minute', now()),
  ('00000000-0000-4000-8000-000000000003', 'b0000000-0000-4000-8000-00000000000b', 'b0000000-0000-4000-8000-00000000000b',
   'untouched', 'failed', null, 'failed', 3, 'no token', now() - interval '1 hour', now()),
  ('00000000-0000-4000-8000-000000000004', 'a0000000-0000-4000-8000-00000000000a', 'a0000000-0000-4000-8000-00000000000a',
   'sent', 'waiting', '{"b": "2"}', 'pending', null, null, now() - interval '1 minute', now()),
  ('00000000-0000-4000-8000-000000000005', 'b0000000-0000-4000-8000-00000000000b', 'b0000000-0000-4000-8000-00000000000b',
   'sent', 'tried once', null, 'pending', 1, 'timeout', now() - interval '23 hours', now()),
  ('00000000-0000-4000-8000-000000000006', 'a0000000-0000-4000-8000-00000000000a', 'a0000000-0000-4000-8000-00000000000a',
   'expired', 'of yesterday', null, 'pending', null, null, now() - interval '25 hours', now() - interval '25 hours'),
  ('00000000-0000-4000-8000-000000000007', 'b0000000-0000-4000-8000-00000000000b', 'b0000000-0000-4000-8000-00000000000b',
   'expired', 'of a year ago', null, 'pending', 2, 'timeout', now() - interval '1 year', now() - interval '1 year'),
  ('00000000-0000-4000-8000-000000000008', null, null,
   'expired', 'of no known age', null, 'pending', null, null, null, null);
