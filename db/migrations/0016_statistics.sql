-- Statistics: what became of pushes, day by day. Reading them does not read the history of the queue, and a purge
-- does not change them.
--
-- Every number is a sum over rows: each row that has ended counts once, under what it is now, on the day it ended.
-- Triggers keep the sums: they add what a changed row has become and subtract what it was, for every writer. So a
-- change made twice counts once, and a requeued push is not counted until it ends again. Only deleting subtracts
-- nothing: purged pushes stay counted.

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
  fillfactor = 50 -- the next version of a row fits on its page, so no index is touched
);
alter table push_listener.daily_counts enable row level security;

comment on table push_listener.daily_counts is
  'What became of pushes. The numbers of a day are the sums over all rows of that day.';
comment on column push_listener.daily_counts.day is
  'In UTC. For a push: when FCM accepted it (sent_at), or, if FCM did not or that is unknown, when the row last changed (updated_at). For opened and clicked: when the receipt arrived.';
comment on column push_listener.daily_counts.error_code is
  'Why pushes ended dead or expired; empty for all others. OTHER: what the row says is not a short upper-case word.';
comment on column push_listener.daily_counts.shard is
  'Several rows for one day and error code, so that concurrent transactions do not wait for each other.';
comment on column push_listener.daily_counts.sent is
  'Pushes that FCM accepted, for one device at least. The delivered ones are among them.';
comment on column push_listener.daily_counts.delivered is
  'The sent pushes for which a device has reported receipt, on any day.';
comment on column push_listener.daily_counts.dead is
  'Pushes given up. A row with status failed and without next_attempt_at counts as dead.';
comment on column push_listener.daily_counts.expired is 'Pushes that expired before FCM accepted them.';
comment on column push_listener.daily_counts.cancelled is 'Pushes that were cancelled.';
comment on column push_listener.daily_counts.opened is 'Receipts that a push has been opened, one for each device.';
comment on column push_listener.daily_counts.clicked is 'Receipts that a push has been clicked, one for each device.';
comment on column push_listener.daily_counts.retries is
  'Tries that these pushes had used up (retry_count), whatever they ended as.';
comment on column push_listener.daily_counts.accepted_timed is
  'The sent pushes whose created_at and sent_at are known.';
comment on column push_listener.daily_counts.accepted_seconds is
  'The seconds from insert to acceptance by FCM, summed over accepted_timed. The time for which a push was scheduled ahead is included.';
comment on column push_listener.daily_counts.delivered_timed is
  'The delivered pushes whose created_at and delivered_at are known.';
comment on column push_listener.daily_counts.delivered_seconds is
  'The seconds from insert to the first receipt that says delivered, summed over delivered_timed.';

\ir ../functions/push_listener/add_counts.sql

-- What a row that has ended adds to the counts. count_changed() has the same expressions.
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

\ir ../functions/push_listener/lost_counts.sql

\ir ../functions/push_listener/count_changed.sql
create trigger push_listener_count_changed
  after update on public.push_notifications
  referencing old table as was new table as became
  for each statement execute function push_listener.count_changed();

-- One trigger for all that is seldom necessary after an insert. Postgres parses the condition of a trigger once for each
-- statement, so that two conditions cost the insert of one row a tenth.
\ir ../functions/push_listener/inserted.sql
create trigger push_listener_inserted
  after insert on public.push_notifications
  for each row when (new.status <> 'pending' or new.next_attempt_at is null)
  execute function push_listener.inserted();

\ir ../functions/push_listener/count_receipts.sql
create trigger push_listener_count_receipts
  after insert on public.push_delivery_logs
  referencing new table as added
  for each statement execute function push_listener.count_receipts();

\ir ../functions/push_listener/daily_totals.sql
\ir ../functions/public/get_push_delivery_stats.sql
