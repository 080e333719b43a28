drop trigger push_listener_fill_nulls on public.push_notifications;
drop trigger push_listener_set_due on public.push_notifications;
drop trigger push_listener_ring_update on public.push_notifications;
drop trigger push_listener_ring_insert on public.push_notifications;
drop function push_listener.set_due();
drop function push_listener.fill_nulls();
drop function push_listener.ring();
