-- revision 1
-- Counts a row that is inserted as finished, by an application that has sent it itself.
create or replace function push_listener.count_inserted() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  change push_listener.daily_counts;
begin
  for change in
    select e.day, e.error_code, null, e.sent, e.delivered, e.dead, e.expired, e.cancelled, 0, 0, e.retries,
           e.accepted_timed, e.accepted_seconds, e.delivered_timed, e.delivered_seconds
      from push_listener.ended e
      where e.id = new.id
  loop
    perform push_listener.add_counts(change);
  end loop;
  return null;
end
$$;
revoke all on function push_listener.count_inserted from public;
