-- revision 1
create or replace function public.get_push_delivery_stats(p_days integer default 7)
  returns table (total_pushes bigint, sent_pushes bigint, failed_pushes bigint, delivered_pushes bigint,
                 delivery_rate numeric, avg_delivery_time interval)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set enable_seqscan = off -- statistics gathered while every row waited would make the planner read the whole table
as $$
begin
  perform push_listener.refuse_users();
  if p_days is null or p_days not between 1 and 3650 then
    raise exception using errcode = 'invalid_parameter_value', message = 'p_days must be from 1 to 3650';
  end if;
  return query
    with ended as (
      select coalesce(sum(c.sent), 0) as sent,
             coalesce(sum(c.dead + c.expired), 0) as failed,
             coalesce(sum(c.cancelled), 0) as cancelled,
             coalesce(sum(c.delivered), 0) as delivered,
             coalesce(sum(c.delivered_seconds) / nullif(sum(c.delivered_timed), 0), 0) as seconds
        from push_listener.daily_counts c
        where c.day > (now() at time zone 'UTC')::date - p_days
          and c.day <= (now() at time zone 'UTC')::date
    ), waiting as (
      select count(*) as pushes
        from public.push_notifications p
        where p.next_attempt_at is not null and p.status in ('pending', 'processing', 'failed')
    )
    select (e.sent + e.failed + e.cancelled + w.pushes)::bigint,
           e.sent::bigint,
           e.failed::bigint,
           e.delivered::bigint,
           coalesce(round(100 * e.delivered / nullif(e.sent, 0), 2), 0),
           make_interval(secs => e.seconds::float8)
      from ended e, waiting w;
end
$$;
revoke all on function public.get_push_delivery_stats(integer) from public;
comment on function public.get_push_delivery_stats(integer) is
  'The last p_days days in UTC, including today. total_pushes: pushes that ended in that time, and all that wait now; sent_pushes: those that FCM accepted; failed_pushes: those dead or expired; delivered_pushes: the sent ones that a device has received; delivery_rate: the same in percent; avg_delivery_time: from insert to first receipt. Purged pushes are counted.';
