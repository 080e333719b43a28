-- revision 1
-- An application that does not know next_attempt_at puts a push back with "update ... set status = 'pending'". This
-- makes the row due. It runs with the rights of the table's owner: a role that may write status need not be allowed
-- to write next_attempt_at.
create or replace function push_listener.make_due_when_pending() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  update public.push_notifications set next_attempt_at = now()
    where id = new.id and status = 'pending' and next_attempt_at is null;
  return null;
end
$$;
revoke all on function push_listener.make_due_when_pending from public;
