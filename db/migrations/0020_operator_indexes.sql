-- migrate: concurrently
-- For those who look for a push: by its user, and by the code of those that were given up or expired.
-- docs/benchmarks.md says what the two cost an insert and a whole push.

create index if not exists push_notifications_user
  on public.push_notifications (user_id, created_at desc, id) where user_id is not null;

-- An application may write any text as a code, and an entry of an index has no more than 2,704 bytes: without a bound the
-- row could not be written. The listener's codes have no more than 64 characters, so 65 tell a longer one from all of them.
create index if not exists push_notifications_code
  on public.push_notifications (pg_catalog.left(error_code::text, 65), updated_at desc)
  where status::text in ('dead', 'expired');
