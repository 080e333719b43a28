-- revision 1
-- Adds to the counts of a day. It never waits, and so is never part of a deadlock: it updates a row of that day that
-- no other transaction has locked, or inserts a new one. Above read committed it always inserts, because updating a
-- row that changed after the transaction began would be an error.
--
-- Old versions of a row slow its updates down for as long as any snapshot in the database may need them. So one call
-- in 500 merges all free rows into a new one.
create or replace function push_listener.add_counts(change push_listener.daily_counts) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  free bigint[];
begin
  if current_setting('transaction_isolation') = 'read committed' then
    if random() < 0.002 then
      select array_agg(c.shard) into free
        from (
          select shard
            from push_listener.daily_counts
            where day = change.day and error_code = change.error_code
            for update skip locked
        ) c;
      with gone as (
        delete from push_listener.daily_counts c
          where c.day = change.day and c.error_code = change.error_code and c.shard = any (free)
          returning c.*
      )
      insert into push_listener.daily_counts (day, error_code, sent, delivered, dead, expired, cancelled, opened,
                                              clicked, retries, accepted_timed, accepted_seconds, delivered_timed,
                                              delivered_seconds)
        select day, error_code, sum(sent), sum(delivered), sum(dead), sum(expired), sum(cancelled), sum(opened),
               sum(clicked), sum(retries), sum(accepted_timed), sum(accepted_seconds), sum(delivered_timed),
               sum(delivered_seconds)
          from gone
          group by day, error_code;
    end if;

    -- The newest row has the fewest old versions.
    select array_agg(c.shard) into free
      from (
        select shard
          from push_listener.daily_counts
          where day = change.day and error_code = change.error_code
          order by shard desc
          limit 1
          for no key update skip locked
      ) c;
    update push_listener.daily_counts c
      set sent = c.sent + change.sent,
          delivered = c.delivered + change.delivered,
          dead = c.dead + change.dead,
          expired = c.expired + change.expired,
          cancelled = c.cancelled + change.cancelled,
          opened = c.opened + change.opened,
          clicked = c.clicked + change.clicked,
          retries = c.retries + change.retries,
          accepted_timed = c.accepted_timed + change.accepted_timed,
          accepted_seconds = c.accepted_seconds + change.accepted_seconds,
          delivered_timed = c.delivered_timed + change.delivered_timed,
          delivered_seconds = c.delivered_seconds + change.delivered_seconds
      where c.day = change.day and c.error_code = change.error_code and c.shard = free[1];
    if found then
      return;
    end if;
  end if;
  insert into push_listener.daily_counts (day, error_code, sent, delivered, dead, expired, cancelled, opened, clicked,
                                          retries, accepted_timed, accepted_seconds, delivered_timed, delivered_seconds)
    values (change.day, change.error_code, change.sent, change.delivered, change.dead, change.expired,
            change.cancelled, change.opened, change.clicked, change.retries, change.accepted_timed,
            change.accepted_seconds, change.delivered_timed, change.delivered_seconds);
end
$$;
revoke all on function push_listener.add_counts from public;
