-- revision 1
create or replace function push_listener.count_receipts() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  change push_listener.daily_counts;
begin
  for change in
    select coalesce((l.created_at at time zone 'UTC')::date, '-infinity'), '', null, 0, 0, 0, 0, 0,
           count(*) filter (where l.status = 'opened'), count(*) filter (where l.status = 'clicked'), 0, 0, 0, 0, 0
      from added l
      where l.status in ('opened', 'clicked')
      group by 1
  loop
    perform push_listener.add_counts(change);
  end loop;
  return null;
end
$$;
revoke all on function push_listener.count_receipts from public;
