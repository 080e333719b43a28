-- The doorbell: a notification without content, which says that there is something to look at. The rows are the
-- truth; a notification that is lost costs time and nothing else.
--
-- Transactions that notify commit one after another, in the whole cluster, so a notification for each insert would
-- make concurrent inserts slow. While a listener polls the queue busily, it holds the advisory lock (1886745449, 0),
-- and no trigger notifies. The listener still finds rows that a transaction inserted while the lock was held and
-- commits after its release: see listener/wakeup/busy_polling.py.

\ir ../functions/push_listener/ring.sql

-- The condition of the trigger asks whether a listener is busy polling, because a function that is not called costs
-- an insert nothing. It is one expression, so that nothing can fail or be cancelled between taking and releasing the
-- lock. The lock must not be held until the end of the transaction: then no listener could begin to poll while such a
-- transaction is open.
create trigger push_listener_ring_insert
  after insert on public.push_notifications
  for each statement
  when (case when pg_catalog.pg_try_advisory_lock_shared(1886745449, 0)
             then pg_catalog.pg_advisory_unlock_shared(1886745449, 0) else false end)
  execute function push_listener.ring();

-- For an operator or the application that puts a row back by hand, update ... set status = 'pending', next_attempt_at
-- = now(), or makes a try sooner. For a claim the condition is false before it reaches the lock, and for a settled
-- row too, unless the worker gives the push back to be sent at once.
create trigger push_listener_ring_update
  after update of status, next_attempt_at on public.push_notifications
  for each row
  when (case when not (new.status = 'pending'
                       and (old.status <> 'pending' or old.next_attempt_at is distinct from new.next_attempt_at)
                       and (old.status <> 'processing' or new.next_attempt_at <= pg_catalog.clock_timestamp())
                       or new.status = 'failed' and old.status = 'failed'
                          and new.next_attempt_at < old.next_attempt_at)
                  or new.next_attempt_at is null then false
             when pg_catalog.pg_try_advisory_lock_shared(1886745449, 0)
             then pg_catalog.pg_advisory_unlock_shared(1886745449, 0) else false end)
  execute function push_listener.ring();

-- What other writers leave out, or set to NULL. The first trigger sees what an insert says, before constraints do. What
-- triggers of the application have made of it, the trigger push_listener_inserted sees. Neither function is called for a
-- plain insert, a claim or a settle.

\ir ../functions/push_listener/fill_nulls.sql

create trigger push_listener_fill_nulls
  before insert on public.push_notifications
  for each row
  when (pg_catalog.num_nulls(new.id, new.status, new.next_attempt_at, new.priority, new.retry_count,
                             new.delivery_attempts, new.lost_claims, new.created_at, new.updated_at) > 0
        or new.status in ('processing', 'failed'))
  execute function push_listener.fill_nulls();

\ir ../functions/push_listener/set_due.sql

create trigger push_listener_set_due
  after update of status, next_attempt_at on public.push_notifications
  for each row
  when (case when new.status = 'pending' then new.next_attempt_at is null
             when new.status in ('processing', 'failed')
             then new.next_attempt_at is not null and new.claimed_by is null and coalesce(new.delivery_attempts, 0) = 0
             else new.push_first_due_at is not null end)
  execute function push_listener.set_due();
