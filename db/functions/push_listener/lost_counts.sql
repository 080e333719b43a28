-- revision 1
-- What "migrate --down" would lose, in words: counts whose rows have been deleted.
create or replace function push_listener.lost_counts() returns setof text
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select pg_catalog.format('the statistics count %s pushes and %s receipts that have been deleted, by a purge perhaps',
                           lost.pushes, lost.receipts)
    from (
      select greatest(0, (select coalesce(sum(c.sent + c.dead + c.expired + c.cancelled), 0)
                            from push_listener.daily_counts c) - (select count(*) from push_listener.ended)) as pushes,
             greatest(0, (select coalesce(sum(c.opened + c.clicked), 0) from push_listener.daily_counts c)
                         - (select count(*) from public.push_delivery_logs l
                              where l.status in ('opened', 'clicked'))) as receipts
    ) lost
    where lost.pushes > 0 or lost.receipts > 0
$$;
revoke all on function push_listener.lost_counts from public;
