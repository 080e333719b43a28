-- The doorbell: a hint without content that there is something to look at. The rows are the truth; a bell that is lost
-- costs time and nothing else.
--
-- Transactions that notify commit one after another, in the whole cluster: a bell for each insert would make many
-- inserts slow. A listener that is awake, looking at the queue all the time, holds the advisory lock (1886745449, 0), and
-- nobody rings. What a transaction has inserted while the lock was taken and commits after it was let go is found all
-- the same: listener/wakeup/busy_polling.py says how.

create function push_listener.ring() returns trigger
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_catalog.pg_notify('push_listener', '');
  return null;
end
$$;
revoke all on function push_listener.ring() from public;

-- Whether anybody is awake is asked in the condition, for a function that is not called costs an insert nothing. It is
-- one expression, in which nothing can fail or be cancelled between taking the lock and letting it go. It must not be
-- kept until the end: as long as one transaction that has rung is open, no listener could be awake.
create trigger push_listener_ring_insert
  after insert on public.push_notifications
  for each statement
  when (case when pg_catalog.pg_try_advisory_lock_shared(1886745449, 0)
             then pg_catalog.pg_advisory_unlock_shared(1886745449, 0) else false end)
  execute function push_listener.ring();

-- An operator or the application puts a row back by hand, update ... set status = 'pending', next_attempt_at = now(), or
-- wants it tried sooner. Claims never come to the lock, and of what a worker settles only what is given back at once.
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

-- An application that knows nothing of next_attempt_at says: update ... set status = 'pending'. It means the same.
-- With the rights of the table's owner, for whoever may say the one need not be allowed to write the other.
create function push_listener.look_again() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  update public.push_notifications set next_attempt_at = now()
    where id = new.id and status = 'pending' and next_attempt_at is null;
  return null;
end
$$;
revoke all on function push_listener.look_again() from public;

create trigger push_listener_look_again
  after update of status on public.push_notifications
  for each row
  when (new.status = 'pending' and new.next_attempt_at is null and old.status <> 'pending')
  execute function push_listener.look_again();
