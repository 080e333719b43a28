-- revision 1
-- What "migrate --down" would lose, in words: counts whose rows have been deleted. The rows of a table that somebody has
-- dropped are deleted too, and with the table its view.
create or replace function push_listener.lost_counts() returns setof text
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_pushes numeric := 0;
  v_receipts numeric := 0;
begin
  if pg_catalog.to_regclass('push_listener.ended') is not null then
    select count(*) into v_pushes from push_listener.ended;
  end if;
  if push_listener.is_as_left('push_delivery_logs') then
    select count(*) into v_receipts from public.push_delivery_logs l where l.status in ('opened', 'clicked');
  end if;
  select sum(c.sent + c.dead + c.expired + c.cancelled) - v_pushes, sum(c.opened + c.clicked) - v_receipts
    into v_pushes, v_receipts
    from push_listener.daily_counts c;
  if v_pushes > 0 or v_receipts > 0 then
    return next pg_catalog.format('the statistics count %s pushes and %s receipts that have been deleted, by a purge perhaps',
                                  greatest(v_pushes, 0), greatest(v_receipts, 0));
  end if;
end
$$;
revoke all on function push_listener.lost_counts from public;
