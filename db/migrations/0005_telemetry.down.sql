do $$
declare
  old record;
begin
  if not exists (select from push_listener.before where kind = 'table' and relation = 'telemetry_logs') then
    if exists (select from public.telemetry_logs)
       and coalesce(current_setting('push_listener.discard_data', true), '') <> 'on' then
      raise exception using errcode = 'object_not_in_prerequisite_state',
        message = 'telemetry_logs was made by push-listener and holds rows',
        hint = 'Nothing has been changed. Save the rows, then roll back with --discard-data.';
    end if;
    drop table public.telemetry_logs;
    return;
  end if;
  for old in
    select a.attname as name from pg_attribute a
      where a.attrelid = 'public.telemetry_logs'::regclass and a.attnum > 0 and not a.attisdropped
        and a.attname in ('type', 'message', 'meta', 'timestamp', 'user_id', 'batch_id', 'processed_at', 'created_at')
        and not exists (
          select from push_listener.before b
            where b.kind = 'column' and b.relation = 'telemetry_logs' and b.name = a.attname)
  loop
    execute format('alter table public.telemetry_logs drop column %I', old.name);
  end loop;
end
$$;
