-- migrate: concurrently
drop index if exists public.push_notifications_code;
drop index if exists public.push_notifications_user;
