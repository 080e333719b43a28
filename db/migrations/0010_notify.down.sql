drop trigger if exists push_listener_fill_nulls on public.push_notifications;
drop trigger if exists push_listener_set_due on public.push_notifications;
drop trigger if exists push_listener_ring_update on public.push_notifications;
drop trigger if exists push_listener_ring_insert on public.push_notifications;
drop function if exists push_listener.set_due();
drop function if exists push_listener.fill_nulls();
drop function if exists push_listener.ring();
