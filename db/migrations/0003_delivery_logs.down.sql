do $$
declare
  old record;
begin
  if not exists (select from push_listener.before where kind = 'table' and relation = 'push_delivery_logs') then
    if exists (select from public.push_delivery_logs)
       and coalesce(current_setting('push_listener.discard_data', true), '') <> 'on' then
      raise exception using errcode = 'object_not_in_prerequisite_state',
        message = 'push_delivery_logs was made by push-listener and holds rows',
        hint = 'Nothing has been changed. Save the rows, then roll back with --discard-data.';
    end if;
    drop table public.push_delivery_logs;
    return;
  end if;

  -- Checks that allowed less than ours come back for new rows only: no log row is rewritten or deleted for them.
  for old in
    select name, definition from push_listener.before where kind = 'check' and relation = 'push_delivery_logs'
  loop
    execute format('alter table public.push_delivery_logs drop constraint if exists %I', old.name);
    execute format('alter table public.push_delivery_logs add constraint %I check (%s) not valid',
                   old.name, old.definition);
  end loop;
  for old in
    select a.attname as name from pg_attribute a
      where a.attrelid = 'public.push_delivery_logs'::regclass and a.attnum > 0 and not a.attisdropped
        and a.attname in ('push_id', 'device_token', 'status', 'details', 'created_at')
        and not exists (
          select from push_listener.before b
            where b.kind = 'column' and b.relation = 'push_delivery_logs' and b.name = a.attname)
  loop
    execute format('alter table public.push_delivery_logs drop column %I', old.name);
  end loop;
end
$$;
