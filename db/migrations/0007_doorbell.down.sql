drop trigger push_listener_look_again on public.push_notifications;
drop trigger push_listener_ring_update on public.push_notifications;
drop trigger push_listener_ring_insert on public.push_notifications;
drop function push_listener.look_again();
drop function push_listener.ring();
