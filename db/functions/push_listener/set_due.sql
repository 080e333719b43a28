-- revision 1
-- An application that does not know next_attempt_at writes status alone, or NULL in next_attempt_at. This makes a row due
-- that is pending, and takes a row out of the queue that the application itself marks as processing or failed: a worker
-- of push-listener has not claimed it, so it is nobody's to try again. It runs with the rights of the table's owner: a
-- role that may write status need not be allowed to write next_attempt_at.
--
-- It also forgets when a push was first due that begins anew, or that the application or cancel_push ends.
create or replace function push_listener.set_due() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if new.status in ('pending', 'processing', 'failed') then
    update public.push_notifications
      set next_attempt_at = case when new.status = 'pending' then now() end, push_first_due_at = null
      where id = new.id and status = new.status and (next_attempt_at is null) = (new.status = 'pending');
  else
    update public.push_notifications set push_first_due_at = null where id = new.id and status = new.status;
  end if;
  return null;
end
$$;
revoke all on function push_listener.set_due from public;
