-- revision 1
-- A row that is written as due long ago is due now. Workers of push-listener do not look for it where it would be.
--
-- It runs with the rights of the table's owner: a role that may write status or priority need not be allowed to write
-- next_attempt_at.
create or replace function push_listener.never_early() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_when = 'BEFORE' then
    new.next_attempt_at := clock_timestamp();
    return new;
  end if;
  update public.push_notifications
    set next_attempt_at = clock_timestamp()
    where id = new.id and status = new.status and next_attempt_at = new.next_attempt_at;
  return null;
end
$$;
revoke all on function push_listener.never_early from public;
