-- No CHECK and no RLS; required columns of its own, some with defaults; a foreign key from elsewhere; storage parameters.

create table public.tenants (id integer primary key, name text not null);
insert into public.tenants values (1, 'first'), (2, 'second');

create table public.push_notifications (
  id uuid primary key,
  tenant_id integer not null default 1 references public.tenants,
  source text not null default 'app',
  "condition" text,
  "timestamp" timestamptz not null default now(),
  user_id uuid,
  device_token varchar(255) not null default '',
  title text not null,
  body text,
  data jsonb not null default '{}',
  status text,
  created_at timestamptz,
  updated_at timestamptz not null default now()
) with (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.1);

create table public.clicks (
  id bigint generated always as identity primary key,
  push_id uuid not null references public.push_notifications (id)
);

create function public.set_updated_at() returns trigger language plpgsql as $$
begin
  if new is distinct from old then
    new.updated_at := clock_timestamp();
  end if;
  return new;
end
$$;
create trigger set_updated_at before update on public.push_notifications
  for each row execute function public.set_updated_at();
create trigger set_updated_at before update on public.tenants
  for each row when (false) execute function public.set_updated_at();
grant select, insert, update, delete on public.push_notifications to authenticated, service_role;

insert into public.push_notifications (id, tenant_id, device_token, title, status, created_at) values
  ('00000000-0000-4000-8000-000000000001', 1, 'token-1', 'untouched', 'sent', now()),
  ('00000000-0000-4000-8000-000000000002', 2, 'token-2', 'untouched', 'PENDING', now()),
  ('00000000-0000-4000-8000-000000000003', 2, 'token-2', 'untouched', null, now()),
  ('00000000-0000-4000-8000-000000000004', 1, 'token-1', 'untouched', 'processing', now() - interval '5 minutes'),
  ('00000000-0000-4000-8000-000000000005', 1, 'token-1', 'sent', 'pending', now()),
  ('00000000-0000-4000-8000-000000000006', 1, 'token-1', 'expired', 'pending', '2020-02-02'),
  ('00000000-0000-4000-8000-000000000007', 1, 'token-1', 'expired', 'pending', null);
insert into public.clicks (push_id) values
  ('00000000-0000-4000-8000-000000000001'), ('00000000-0000-4000-8000-000000000006');

create table public.telemetry_logs (
  id bigint generated always as identity primary key,
  type text not null default 'info',
  message text not null,
  meta jsonb,
  timestamp timestamptz default now(),
  user_id uuid,
  created_at timestamptz not null default now()
);
insert into public.telemetry_logs (message) values ('it works');
