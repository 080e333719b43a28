-- migrate: concurrently
drop index if exists public.push_delivery_logs_push;
drop index if exists public.push_notifications_idempotency;
drop index if exists public.push_notifications_due;
