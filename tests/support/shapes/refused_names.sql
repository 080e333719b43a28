-- Things of the application's that are named as push-listener's are.

create table public.push_notifications (id uuid primary key, status text);
create index push_notifications_due on public.push_notifications (status);
create table public.push_devices_live ();
create function public.nothing() returns trigger language plpgsql as 'begin return null; end';
create trigger push_listener_mine after insert on public.push_notifications for each row execute function public.nothing();
-- The same arguments, whatever their names.
create function public.cancel_push(id uuid) returns boolean language sql as 'select true';
-- A call with p_push_id alone would fit both.
create function public.mark_push_sent(p_push_id uuid, p_status text default 'sent') returns void language sql as 'select';
create function public.mark_push_failed(p_push_id uuid) returns void language sql as 'select';
-- And one with neither argument.
create function public.fetch_pending_pushes() returns setof public.push_notifications language sql
  as 'select * from public.push_notifications';
-- These can be told apart.
create function public.mark_push_failed(p_push_id uuid, p_code integer) returns void language sql as 'select';
create function public.unregister_device(uuid, text) returns void language sql as 'select';
