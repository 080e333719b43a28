-- Statistics: what became of pushes, day by day, told without reading the queue's history, and kept when that is purged.
--
-- Every number is a sum over rows: each row that has ended counts once, under what it is now, on the day it ended. So
-- triggers keep the sums by adding what a changed row has become and taking off what it was, whoever changes it and how
-- often: a change made twice counts once, and a push that is requeued leaves the numbers until it ends again. Only
-- deleting takes nothing off: what has been purged stays counted.

create table push_listener.daily_counts (
  day date not null,
  error_code text not null,
  shard bigint generated always as identity,
  sent bigint not null default 0,
  delivered bigint not null default 0,
  dead bigint not null default 0,
  expired bigint not null default 0,
  cancelled bigint not null default 0,
  opened bigint not null default 0,
  clicked bigint not null default 0,
  retries bigint not null default 0,
  accepted_timed bigint not null default 0,
  accepted_seconds numeric not null default 0,
  delivered_timed bigint not null default 0,
  delivered_seconds numeric not null default 0,
  primary key (day, error_code, shard)
) with (
  fillfactor = 50 -- a row's next versions find room beside it, and touch no index
);
alter table push_listener.daily_counts enable row level security;

comment on table push_listener.daily_counts is
  'What became of pushes. The numbers of a day are the sums over all of its rows.';
comment on column push_listener.daily_counts.day is
  'In UTC. Of a push: when FCM accepted it (sent_at), or, where it did not or that is not known, when the row last changed (updated_at). Of opened and clicked: when the receipt came.';
comment on column push_listener.daily_counts.error_code is
  'Why pushes ended dead or expired; empty for all others. OTHER: what the row says is not a short upper-case word.';
comment on column push_listener.daily_counts.shard is
  'Several rows of one day and error code, so that those who count at the same time need not wait for each other.';
comment on column push_listener.daily_counts.sent is
  'Pushes that FCM accepted, for one device at least. The delivered ones are among them.';
comment on column push_listener.daily_counts.delivered is
  'Those of the sent pushes that a device has reported to have received, on whatever day.';
comment on column push_listener.daily_counts.dead is
  'Pushes given up. A row that somebody left in status failed without a next_attempt_at is one of them.';
comment on column push_listener.daily_counts.expired is 'Pushes that had lost their meaning before FCM accepted them.';
comment on column push_listener.daily_counts.cancelled is 'Pushes that were taken back.';
comment on column push_listener.daily_counts.opened is 'Receipts that a push has been opened, one for each device.';
comment on column push_listener.daily_counts.clicked is 'Receipts that a push has been clicked, one for each device.';
comment on column push_listener.daily_counts.retries is
  'Tries that these pushes, whatever they ended as, had used up (retry_count).';
comment on column push_listener.daily_counts.accepted_timed is
  'Those of the sent pushes of which created_at and sent_at are known.';
comment on column push_listener.daily_counts.accepted_seconds is
  'Over those, the sum of seconds from the insert to FCM''s acceptance. What a push was scheduled ahead is in it.';
comment on column push_listener.daily_counts.delivered_timed is
  'Those of the delivered pushes of which created_at and delivered_at are known.';
comment on column push_listener.daily_counts.delivered_seconds is
  'Over those, the sum of seconds from the insert to the first receipt that says delivered.';

-- Adds to the counts. It never waits for anybody, and so is no part of any deadlock: it takes a row of that day that
-- nobody holds, or makes a new one. A transaction above read committed always makes one: to it, a row that has changed
-- since it began would be an error.
--
-- A row's old versions stay in its way for as long as any snapshot in the database might need them. So now and then all
-- rows that are free become a new one.
create function push_listener.add_counts(change push_listener.daily_counts) returns void
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

    -- The newest has the fewest old versions.
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
revoke all on function push_listener.add_counts(push_listener.daily_counts) from public;

-- What a row that has ended counts as.
create view push_listener.ended with (security_invoker = true) as
select e.id,
       coalesce((e.ended_at at time zone 'UTC')::date, '-infinity') as day,
       case when e.ended_as in ('sent', 'cancelled') or e.error_code is null then ''
            when e.error_code ~ '^[A-Z][A-Z0-9_]{0,63}$' then e.error_code
            else 'OTHER' end as error_code,
       (e.ended_as = 'sent')::integer as sent,
       e.delivered::integer as delivered,
       (e.ended_as = 'dead')::integer as dead,
       (e.ended_as = 'expired')::integer as expired,
       (e.ended_as = 'cancelled')::integer as cancelled,
       e.retries,
       (e.accepted_after is not null)::integer as accepted_timed,
       coalesce(greatest(e.accepted_after, 0), 0) as accepted_seconds,
       (e.delivered_after is not null)::integer as delivered_timed,
       coalesce(greatest(e.delivered_after, 0), 0) as delivered_seconds
  from (
    select p.id, p.error_code, coalesce(p.retry_count, 0) as retries,
           case when p.status in ('sent', 'delivered') then 'sent' when p.status = 'failed' then 'dead'
                else p.status end as ended_as,
           p.status = 'delivered' or (p.status = 'sent' and p.delivered_at is not null) as delivered,
           coalesce(case when p.status in ('sent', 'delivered') then p.sent_at end, p.updated_at, p.created_at)
             as ended_at,
           case when p.status in ('sent', 'delivered') and isfinite(p.sent_at) and isfinite(p.created_at)
                then extract(epoch from p.sent_at - p.created_at) end as accepted_after,
           case when p.status in ('sent', 'delivered') and isfinite(p.delivered_at) and isfinite(p.created_at)
                then extract(epoch from p.delivered_at - p.created_at) end as delivered_after
      from public.push_notifications p
      where p.status in ('sent', 'delivered', 'dead', 'expired', 'cancelled')
        or (p.status = 'failed' and p.next_attempt_at is null)
  ) e;
comment on view push_listener.ended is 'The rows that have ended, and what each adds to push_listener.daily_counts.';

-- What the way back would lose, in words: numbers that no row tells any more.
create function push_listener.lost_counts() returns setof text
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
revoke all on function push_listener.lost_counts() from public;

-- The same of the rows that a statement has changed: added for what they have become, taken off for what they were.
create function push_listener.count_changed() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  change push_listener.daily_counts;
begin
  -- A claim ends nothing, and a push waits for it.
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
           sum(e.sign * coalesce(greatest(e.accepted_after, 0), 0)),
           sum(case when e.delivered_after is not null then e.sign else 0 end),
           sum(e.sign * coalesce(greatest(e.delivered_after, 0), 0))
      from (
        select p.sign, p.error_code, coalesce(p.retry_count, 0) as retries,
               case when p.status in ('sent', 'delivered') then 'sent' when p.status = 'failed' then 'dead'
                    else p.status end as ended_as,
               p.status = 'delivered' or (p.status = 'sent' and p.delivered_at is not null) as delivered,
               coalesce(case when p.status in ('sent', 'delivered') then p.sent_at end, p.updated_at, p.created_at)
                 as ended_at,
               case when p.status in ('sent', 'delivered') and isfinite(p.sent_at) and isfinite(p.created_at)
                    then extract(epoch from p.sent_at - p.created_at) end as accepted_after,
               case when p.status in ('sent', 'delivered') and isfinite(p.delivered_at) and isfinite(p.created_at)
                    then extract(epoch from p.delivered_at - p.created_at) end as delivered_after
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
revoke all on function push_listener.count_changed() from public;

create trigger push_listener_count_changed
  after update on public.push_notifications
  referencing old table as was new table as became
  for each statement execute function push_listener.count_changed();

-- A row that comes in finished, from an application that sent it by itself.
create function push_listener.count_inserted() returns trigger
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
revoke all on function push_listener.count_inserted() from public;

create trigger push_listener_count_inserted
  after insert on public.push_notifications
  for each row when (new.status <> 'pending')
  execute function push_listener.count_inserted();

create function push_listener.count_receipts() returns trigger
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
revoke all on function push_listener.count_receipts() from public;

create trigger push_listener_count_receipts
  after insert on public.push_delivery_logs
  referencing new table as added
  for each statement execute function push_listener.count_receipts();

create function public.get_push_delivery_stats(p_days integer default 7)
  returns table (total_pushes bigint, sent_pushes bigint, failed_pushes bigint, delivered_pushes bigint,
                 delivery_rate numeric, avg_delivery_time interval)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set enable_seqscan = off -- a table that was analyzed while all of it waited would be read as a whole
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
comment on function public.get_push_delivery_stats(integer) is
  'The last p_days days in UTC, today included. total_pushes: those that ended then, and all that wait now; sent_pushes: those of them that FCM accepted; failed_pushes: dead or expired; delivered_pushes: those of the sent ones that a device has received; delivery_rate: the same in percent; avg_delivery_time: from insert to first receipt. What has been purged is counted.';
select push_listener.allow('public.get_push_delivery_stats(integer)', 'service_role');
