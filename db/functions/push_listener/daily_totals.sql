-- revision 1
-- The role of the service may read the sums of all codes, and not daily_counts itself.
create or replace function push_listener.daily_totals(p_days integer)
  returns table (day date, days_ago integer, sent bigint, delivered bigint, dead bigint, expired bigint, cancelled bigint,
                 opened bigint, clicked bigint, delivered_timed bigint, delivered_seconds double precision)
  language sql stable security definer rows 31 set search_path = pg_catalog, pg_temp
as $$
  select c.day, (now() at time zone 'UTC')::date - c.day, sum(c.sent)::bigint, sum(c.delivered)::bigint,
         sum(c.dead)::bigint, sum(c.expired)::bigint, sum(c.cancelled)::bigint, sum(c.opened)::bigint,
         sum(c.clicked)::bigint, sum(c.delivered_timed)::bigint, sum(c.delivered_seconds)::float8
    from push_listener.daily_counts c
    where c.day > (now() at time zone 'UTC')::date - p_days and c.day <= (now() at time zone 'UTC')::date
    group by c.day
$$;
revoke all on function push_listener.daily_totals from public;
comment on function push_listener.daily_totals is
  'push_listener.daily_counts of the last days in UTC, including today, one row for each day that has any.';
