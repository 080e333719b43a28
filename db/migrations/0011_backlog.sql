-- migrate: concurrently
-- The rows of an adopted queue. Each statement is a transaction of its own, under locks that block no reader or writer.

-- The rows that waited at adoption. Those less than a day overdue are sent. Older ones expire, so that a queue that
-- nobody emptied for months does not flood people's phones. The setting push_listener.expire_older_than changes the
-- limit: an interval, or 'never'.
do $$
declare
  waits constant text := (
    select definition from push_listener.adoption_record where kind = 'waits' and relation = 'push_notifications');
  due constant text := (
    select definition from push_listener.adoption_record where kind = 'due' and relation = 'push_notifications');
  patience constant text := coalesce(nullif(current_setting('push_listener.expire_older_than', true), ''), '1 day');
  oldest constant timestamptz := (
    select case when patience = 'never' then '-infinity' else applied_at - patience::interval end
      from push_listener.migrations where name = 'adoption');
  -- If this is on, a row is locked only until its batch is committed.
  in_batches constant boolean := current_setting('push_listener.in_batches', true) is not distinct from 'on';
  lock_patience constant interval :=
    coalesce(nullif(current_setting('push_listener.lock_patience', true), ''), '60 s')::interval;
  -- What a worker of the application has in hand, or gave up, is not push-listener's to send: see fill_nulls().
  is_left constant text :=
    'status in (''processing'', ''failed'') and next_attempt_at is not null and claimed_by is null '
    'and coalesce(delivery_attempts, 0) = 0';
  is_undecided constant text := format(
    '((%s) and (next_attempt_at is null or next_attempt_at < $1) or (%s))', waits, is_left);
  blocks bigint;
  decided bigint;
  late bigint;
  undone bigint;
  decided_in_all bigint := 0;
  late_in_all bigint := 0;
  decided_before bigint;
  locked bigint;
  holders text;
  last_decided_at timestamptz := clock_timestamp();
begin
  if waits is null then
    return; -- push-listener has created the table
  end if;
  -- From the first block of the table to the last, and again as long as rows are left: an update by the application may
  -- move a row behind the pass. A row that another transaction has locked is skipped and looked at again. A trigger of
  -- the application may wait for a lock too: then the batch is given up, so that its rows are not locked for long.
  --
  -- Triggers of the application run with the search_path of its own sessions. The statement itself is parsed before
  -- that, with the search_path of this one.
  loop
    decided_before := decided_in_all;
    blocks := pg_relation_size('public.push_notifications') / current_setting('block_size')::bigint;
    for block in 0 .. blocks by 16 loop
      begin
        execute format(
          'with path as materialized (
             select set_config(''search_path'', null, true) as of_the_application,
                    set_config(''lock_timeout'', ''200ms'', true) as patience
           ), free as materialized (
             select id as push_id, (%3$s) as is_left, coalesce(%1$s < $1, $1 > ''-infinity'') as is_late
               from public.push_notifications, path
               where ctid >= $2 and ctid < $3 and %2$s
               for no key update of push_notifications skip locked
           ), decided as (
             update public.push_notifications
               set status = case when free.is_late and not free.is_left then ''expired'' else status end,
                   error_code = case when free.is_late and not free.is_left then ''STALE_AT_ADOPTION'' else error_code end,
                   next_attempt_at = case when not free.is_late and not free.is_left then now() end,
                   retry_count = coalesce(retry_count, 0),
                   delivery_attempts = coalesce(delivery_attempts, 0)
               from free
               where id = free.push_id
               returning status, free.is_left, %2$s as is_undecided
           )
           select count(*) filter (where not is_left), count(*) filter (where status = ''expired''),
                  count(*) filter (where is_undecided)
             from decided', due, is_undecided, is_left)
          into decided, late, undone
          using oldest, format('(%s,0)', block)::tid, format('(%s,0)', block + 16)::tid;
      exception when lock_not_available then
        decided := 0;
        late := 0;
        undone := 0;
      end;
      set local search_path = pg_catalog, pg_temp;
      if undone > 0 then -- the loop would never end
        raise exception using
          errcode = 'object_not_in_prerequisite_state',
          message = 'a trigger on push_notifications takes back what is written in status, or in next_attempt_at',
          hint = format('Let it pass what %I and the role push_listener write, then run this again.', current_user);
      end if;
      decided_in_all := decided_in_all + decided;
      late_in_all := late_in_all + late;
      if in_batches then
        set local search_path to default; -- deferred triggers run at commit
        commit;
      end if;
    end loop;
    if decided_in_all > decided_before then
      last_decided_at := clock_timestamp();
      continue;
    end if;
    execute format('select count(*) from public.push_notifications where %s', is_undecided) into locked using oldest;
    exit when locked = 0;
    if not in_batches or clock_timestamp() > last_decided_at + lock_patience then
      select string_agg(distinct format('process %s of role %s, whose transaction is open for %s s', l.pid, a.usename,
                                        extract(epoch from clock_timestamp() - a.xact_start)::integer), '; ')
        into holders
        from pg_locks l
        join pg_stat_activity a on a.pid = l.pid
        where l.relation = 'public.push_notifications'::regclass and l.pid <> pg_backend_pid()
          and l.mode in ('RowShareLock', 'RowExclusiveLock') and l.granted;
      raise exception using
        errcode = 'object_in_use',
        message = format('%s waiting rows of push_notifications are locked by others, or a trigger on them waits for a lock', locked),
        hint = format('Wait until these transactions have ended, or end them, then run this again: %s.',
                      coalesce(holders, 'none is seen now'));
    end if;
    commit;
    perform pg_sleep(0.2);
  end loop;
  if late_in_all > 0 then
    raise warning 'push_notifications had rows that waited for longer than %, or nobody knows how long: % of them have expired',
      patience, late_in_all;
  end if;
end
$$;

-- adopt() has widened checks as NOT VALID. Every row meets them, so they are validated here.
do $$
declare
  found record;
begin
  for found in
    select k.conrelid::regclass as relation, k.conname
      from push_listener.adoption_record b
      join pg_constraint k on k.conname = b.name and k.conrelid = to_regclass(format('public.%I', b.relation))
      where b.kind = 'check' and not k.convalidated and b.definition !~ 'NOT VALID'
  loop
    execute format('alter table %s validate constraint %I', found.relation, found.conname);
  end loop;
end
$$;
