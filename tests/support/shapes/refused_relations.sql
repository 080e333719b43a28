-- Not the tables that they have to be.

create table public.messages (id uuid primary key, status text);
create view public.push_notifications as select * from public.messages;
create table public.push_delivery_logs (push_id uuid, status text, created_at timestamptz not null)
  partition by range (created_at);
create table public.logs (id bigint primary key);
create table public.telemetry_logs (type text, message text) inherits (public.logs);
create rule no_delete as on delete to public.telemetry_logs do instead nothing;
create table public.push_recipients (user_id uuid, token text);
