-- migrate: concurrently
drop index if exists public.push_notifications_over;
