-- revision 1
-- Sees to a row that is inserted as anything but a waiting one. A row that is inserted as finished, by an application that
-- has sent it itself, is counted. Then it does what set_due() does after an update.
create or replace function push_listener.inserted() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  change push_listener.daily_counts;
begin
  -- Before the row is taken out of the queue: count_changed() counts it then, if that ends it.
  if new.status <> 'pending' then
    for change in
      select e.day, e.error_code, null, e.sent, e.delivered, e.dead, e.expired, e.cancelled, 0, 0, e.retries,
             e.accepted_timed, e.accepted_seconds, e.delivered_timed, e.delivered_seconds
        from push_listener.ended e
        where e.id = new.id
    loop
      perform push_listener.add_counts(change);
    end loop;
  end if;

  if new.status = 'pending' and new.next_attempt_at is null
     or new.status in ('processing', 'failed') and new.next_attempt_at is not null
        and new.claimed_by is null and coalesce(new.delivery_attempts, 0) = 0 then
    update public.push_notifications
      set next_attempt_at = case when new.status = 'pending' then now() end, push_first_due_at = null
      where id = new.id and status = new.status and (next_attempt_at is null) = (new.status = 'pending');
  elsif new.status not in ('pending', 'processing', 'failed') and new.push_first_due_at is not null then
    update public.push_notifications set push_first_due_at = null where id = new.id and status = new.status;
  end if;
  return null;
end
$$;
revoke all on function push_listener.inserted from public;
