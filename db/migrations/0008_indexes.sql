-- migrate: concurrently
-- Each statement is a transaction of its own. What looks at every row does so under locks that are in nobody's way, and
-- indexes are built with CREATE INDEX CONCURRENTLY.

-- The rows that waited when the queue was adopted. What is less than a day overdue is sent. What is older has lost its
-- meaning and expires: a queue that nobody emptied for months must not be poured over people's phones. The setting
-- push_listener.expire_older_than says otherwise: an interval, or 'never'.
do $$
declare
  waits constant text := (
    select definition from push_listener.before where kind = 'waits' and relation = 'push_notifications');
  due constant text := (
    select definition from push_listener.before where kind = 'due' and relation = 'push_notifications');
  patience constant text := coalesce(nullif(current_setting('push_listener.expire_older_than', true), ''), '1 day');
  oldest constant timestamptz := (
    select case when patience = 'never' then '-infinity' else applied_at - patience::interval end
      from push_listener.migrations where version = 1);
  -- With this on, a row is locked only until its batch is written.
  in_batches constant boolean := current_setting('push_listener.in_batches', true) is not distinct from 'on';
  blocks bigint;
  decided bigint;
  late bigint;
  undone bigint;
  decided_in_all bigint := 0;
  late_in_all bigint := 0;
  decided_before bigint;
begin
  if waits is null then
    return; -- the table is push-listener's own
  end if;
  -- From one end of the table to the other; and again, for rows that an update of the application's has moved.
  --
  -- Triggers of the application's run in here, with the search_path that its own sessions have. The statement has been
  -- read by then, with the search_path of this one.
  loop
    decided_before := decided_in_all;
    blocks := pg_relation_size('public.push_notifications') / current_setting('block_size')::bigint;
    for block in 0 .. blocks by 128 loop
      execute format(
        'with path as materialized (
           select set_config(''search_path'', null, true) as of_the_application
         ), decided as (
           update public.push_notifications
             set status = case when %1$s then ''expired'' else status end,
                 error_code = case when %1$s then ''STALE_AT_ADOPTION'' else error_code end,
                 next_attempt_at = case when not %1$s then now() end,
                 retry_count = coalesce(retry_count, 0),
                 delivery_attempts = coalesce(delivery_attempts, 0)
             from path
             where ctid >= $2 and ctid < $3 and (%2$s) and (next_attempt_at is null or next_attempt_at < $1)
             returning status, (%2$s) and (next_attempt_at is null or next_attempt_at < $1) as waits_still
         )
         select count(*), count(*) filter (where status = ''expired''), count(*) filter (where waits_still) from decided',
        format('coalesce(%s < $1, $1 > ''-infinity'')', due), waits)
        into decided, late, undone
        using oldest, format('(%s,0)', block)::tid, format('(%s,0)', block + 128)::tid;
      set local search_path = pg_catalog, pg_temp;
      if undone > 0 then -- or this would never end
        raise exception using
          errcode = 'object_not_in_prerequisite_state',
          message = 'a trigger on push_notifications takes back what is written in status, or in next_attempt_at',
          hint = format('Let it pass what %I and the role push_listener write, then run this again.', current_user);
      end if;
      decided_in_all := decided_in_all + decided;
      late_in_all := late_in_all + late;
      if in_batches then
        set local search_path to default; -- for triggers that are deferred until now
        commit;
      end if;
    end loop;
    exit when decided_in_all = decided_before;
  end loop;
  if late_in_all > 0 then
    raise warning 'push_notifications had rows that waited for longer than %, or nobody knows how long: % of them have expired',
      patience, late_in_all;
  end if;
end
$$;

-- The checks that were widened: every row meets them, and now Postgres knows it too.
do $$
declare
  found record;
begin
  for found in
    select k.conrelid::regclass as relation, k.conname
      from push_listener.before b
      join pg_constraint k on k.conname = b.name and k.conrelid = to_regclass(format('public.%I', b.relation))
      where b.kind = 'check' and not k.convalidated and b.definition !~ 'NOT VALID'
  loop
    execute format('alter table %s validate constraint %I', found.relation, found.conname);
  end loop;
end
$$;

-- The queue: new, scheduled, failed and leased rows. Finished rows are not in it, so it stays as small as the backlog.
-- The first column is the lane: 0 for priority 'high', 1 for everything else.
create index if not exists push_notifications_due
  on public.push_notifications ((case priority::text when 'high' then 0 else 1 end), next_attempt_at)
  where next_attempt_at is not null and status::text in ('pending', 'processing', 'failed');

create unique index if not exists push_notifications_idempotency
  on public.push_notifications (idempotency_key) where idempotency_key is not null;

-- What a person may put back, oldest first.
create index if not exists push_notifications_given_up
  on public.push_notifications (updated_at) where status::text in ('dead', 'expired', 'failed', 'cancelled');

create index if not exists push_delivery_logs_push on public.push_delivery_logs (push_id);

create index if not exists push_devices_live on public.push_devices (user_id) where disabled_at is null;

-- The devices that FCM has called dead, of which register_device keeps a user's last ones.
create index if not exists push_devices_disabled on public.push_devices (user_id, disabled_at) where disabled_at is not null;

-- What the planner knows of an adopted table is of the time before its rows were decided about.
analyze public.push_notifications;
