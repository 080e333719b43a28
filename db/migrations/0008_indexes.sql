-- migrate: concurrently
-- Each statement is run on its own, outside a transaction, as CREATE INDEX CONCURRENTLY: a table that is in use is not
-- locked while its index is built.

-- The queue: new, scheduled, failed and leased rows. Finished rows are not in it, so it stays as small as the backlog.
-- The first column is the lane: 0 for priority 'high', 1 for everything else.
create index if not exists push_notifications_due
  on public.push_notifications ((case priority when 'high' then 0 else 1 end), next_attempt_at)
  where next_attempt_at is not null and status in ('pending', 'processing', 'failed');

create unique index if not exists push_notifications_idempotency
  on public.push_notifications (idempotency_key) where idempotency_key is not null;

create index if not exists push_delivery_logs_push on public.push_delivery_logs (push_id);
