-- revision 2
-- Counts the rows that a statement has changed: adds what they have become, and subtracts what they were. The
-- expressions are those of push_listener.ended, for the two transition tables.
create or replace function push_listener.count_changed() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  change push_listener.daily_counts;
begin
  -- A claim ends no push, and is on the path of every push: it returns early.
  if not exists (select from became where status not in ('pending', 'processing'))
     and not exists (select from was where status not in ('pending', 'processing')) then
    return null;
  end if;

  for change in
    select coalesce((e.ended_at at time zone 'UTC')::date, '-infinity'),
           case when e.ended_as in ('sent', 'cancelled') or e.error_code is null then ''
                when e.error_code ~ '^[A-Z][A-Z0-9_]{0,63}$' then e.error_code
                else 'OTHER' end,
           null,
           sum(case when e.ended_as = 'sent' then e.sign else 0 end),
           sum(case when e.delivered then e.sign else 0 end),
           sum(case when e.ended_as = 'dead' then e.sign else 0 end),
           sum(case when e.ended_as = 'expired' then e.sign else 0 end),
           sum(case when e.ended_as = 'cancelled' then e.sign else 0 end),
           0,
           0,
           sum(e.sign * e.retries),
           sum(case when e.accepted_after is not null then e.sign else 0 end),
           coalesce(extract(epoch from sum(e.sign * greatest(e.accepted_after, '0'))), 0),
           sum(case when e.delivered_after is not null then e.sign else 0 end),
           coalesce(extract(epoch from sum(e.sign * greatest(e.delivered_after, '0'))), 0)
      from (
        select p.sign, p.error_code, coalesce(p.retry_count, 0) as retries,
               case when p.status in ('sent', 'delivered') then 'sent' when p.status = 'failed' then 'dead'
                    else p.status end as ended_as,
               p.status = 'delivered' or (p.status = 'sent' and p.delivered_at is not null) as delivered,
               coalesce(case when p.status in ('sent', 'delivered') then p.sent_at end, p.updated_at, p.created_at)
                 as ended_at,
               case when p.status in ('sent', 'delivered') and isfinite(p.sent_at) and isfinite(p.created_at)
                    then p.sent_at - p.created_at end as accepted_after,
               case when p.status in ('sent', 'delivered') and isfinite(p.delivered_at) and isfinite(p.created_at)
                    then p.delivered_at - p.created_at end as delivered_after
          from (
            select 1 as sign, b.status, b.error_code, b.retry_count, b.created_at, b.updated_at, b.sent_at,
                   b.delivered_at, b.next_attempt_at
              from became b
            union all
            select -1, w.status, w.error_code, w.retry_count, w.created_at, w.updated_at, w.sent_at,
                   w.delivered_at, w.next_attempt_at
              from was w
          ) p
          where p.status in ('sent', 'delivered', 'dead', 'expired', 'cancelled')
            or (p.status = 'failed' and p.next_attempt_at is null)
      ) e
      group by 1, 2
  loop
    if (change.sent, change.delivered, change.dead, change.expired, change.cancelled, change.retries,
        change.accepted_timed, change.accepted_seconds, change.delivered_timed, change.delivered_seconds)
       <> (0, 0, 0, 0, 0, 0, 0, 0, 0, 0) then
      perform push_listener.add_counts(change);
    end if;
  end loop;
  return null;
end
$$;
revoke all on function push_listener.count_changed from public;
