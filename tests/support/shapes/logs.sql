-- After reference.sql: delivery logs and telemetry of its own, with rows.

create table public.push_delivery_logs (
  id uuid primary key default gen_random_uuid(),
  push_id uuid not null references public.push_notifications (id) on delete cascade,
  device_token text not null,
  status varchar(20) not null default 'delivered' constraint known_status check (status in ('delivered', 'failed')),
  provider text not null default 'fcm',
  created_at timestamptz not null default now()
);
create index push_delivery_logs_by_status on public.push_delivery_logs (status) where status = 'failed';
alter table public.push_delivery_logs enable row level security;
create policy "drivers see their logs" on public.push_delivery_logs for select to authenticated
  using (exists (select from public.push_notifications p where p.id = push_id and p.driver_id = (select auth.uid())));
grant select on public.push_delivery_logs to authenticated;
insert into public.push_delivery_logs (id, push_id, device_token, status, created_at) values
  ('10000000-0000-4000-8000-000000000001', '00000000-0000-4000-8000-000000000001', 'phone-of-a', 'delivered', now() - interval '90 days'),
  ('10000000-0000-4000-8000-000000000002', '00000000-0000-4000-8000-000000000003', 'gone', 'failed', now() - interval '1 hour');

create table public.telemetry_logs (
  id uuid primary key default gen_random_uuid(),
  type text not null,
  message text not null,
  meta jsonb,
  timestamp timestamptz
);
alter table public.telemetry_logs enable row level security;
insert into public.telemetry_logs (id, type, message, meta, timestamp) values
  ('20000000-0000-4000-8000-000000000001', 'error', 'it broke', '{"line": 3}', now() - interval '1 day'),
  ('20000000-0000-4000-8000-000000000002', 'info', 'it works', null, null);
