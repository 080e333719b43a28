-- migrate: concurrently
-- For those who look for a push: by its user, and by the code of those that were given up or expired.
-- docs/benchmarks.md says what the two cost an insert and a whole push.

create index if not exists push_notifications_user
  on public.push_notifications (user_id, created_at desc, id) where user_id is not null;

create index if not exists push_notifications_code
  on public.push_notifications (error_code, updated_at desc) where status::text in ('dead', 'expired');
