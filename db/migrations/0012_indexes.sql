-- migrate: concurrently
-- Each is built with CREATE INDEX CONCURRENTLY, which blocks no writer.

-- The queue: new, scheduled, failed and leased rows. Finished rows are not in it, so it stays as small as the
-- backlog. The first column is the lane: 0 for priority 'high', 1 for every other.
create index if not exists push_notifications_due
  on public.push_notifications ((case priority::text when 'high' then 0 else 1 end), next_attempt_at)
  where next_attempt_at is not null and status::text in ('pending', 'processing', 'failed');

create unique index if not exists push_notifications_idempotency
  on public.push_notifications (idempotency_key) where idempotency_key is not null;

-- What a person may requeue, oldest first.
create index if not exists push_notifications_given_up
  on public.push_notifications (updated_at) where status::text in ('dead', 'expired', 'failed', 'cancelled');

-- What a purge may delete, oldest first. Dead pushes are in push_notifications_given_up, for a person to requeue.
-- This index costs some 70 bytes of WAL for each push. Without it, every purge would read the whole history.
create index if not exists push_notifications_over
  on public.push_notifications (updated_at) where status::text in ('sent', 'delivered', 'expired', 'cancelled');

create index if not exists push_delivery_logs_push on public.push_delivery_logs (push_id);

create index if not exists push_devices_live on public.push_devices (user_id) where disabled_at is null;

-- Devices whose token FCM has reported as no longer valid. register_device keeps the last ones of each user.
create index if not exists push_devices_disabled on public.push_devices (user_id, disabled_at) where disabled_at is not null;

-- The statistics of an adopted table are older than the decision about its rows, and do not cover the expression above.
analyze public.push_notifications;
