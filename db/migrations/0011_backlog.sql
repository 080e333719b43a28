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
  blocks bigint;
  decided bigint;
  late bigint;
  undone bigint;
  decided_in_all bigint := 0;
  late_in_all bigint := 0;
  decided_before bigint;
begin
  if waits is null then
    return; -- push-listener has created the table
  end if;
  -- From the first block of the table to the last, and again as long as a pass finds rows: an update by the
  -- application may move a row behind the pass.
  --
  -- Triggers of the application run with the search_path of its own sessions. The statement itself is parsed before
  -- that, with the search_path of this one.
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
    exit when decided_in_all = decided_before;
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
