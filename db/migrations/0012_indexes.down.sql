-- migrate: concurrently
drop index if exists public.push_notifications_over;
drop index if exists public.push_devices_disabled;
drop index if exists public.push_devices_live;
drop index if exists public.push_delivery_logs_push;
drop index if exists public.push_notifications_given_up;
drop index if exists public.push_notifications_idempotency;
drop index if exists public.push_notifications_due;
