drop trigger push_listener_make_due on public.push_notifications;
drop trigger push_listener_ring_update on public.push_notifications;
drop trigger push_listener_ring_insert on public.push_notifications;
drop function push_listener.make_due_when_pending();
drop function push_listener.ring();
