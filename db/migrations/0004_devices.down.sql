do $$
begin
  if not exists (select from push_listener.before where kind = 'table' and relation = 'push_devices')
     and exists (select from public.push_devices)
     and coalesce(current_setting('push_listener.discard_data', true), '') <> 'on' then
    raise exception using errcode = 'object_not_in_prerequisite_state',
      message = 'push_devices was made by push-listener and holds rows',
      hint = 'Nothing has been changed. Save the rows, then roll back with --discard-data.';
  end if;
end
$$;

drop function public.push_disable_token(text, text);

do $$
declare
  old record;
begin
  if not exists (select from push_listener.before where kind = 'view' and relation = 'push_recipients') then
    drop view public.push_recipients;
  end if;
  if not exists (select from push_listener.before where kind = 'table' and relation = 'push_devices') then
    drop table public.push_devices;
    return;
  end if;
  drop index public.push_devices_live;
  for old in
    select a.attname as name from pg_attribute a
      where a.attrelid = 'public.push_devices'::regclass and a.attnum > 0 and not a.attisdropped
        and a.attname in ('user_id', 'platform', 'created_at', 'updated_at', 'disabled_at', 'disabled_reason')
        and not exists (
          select from push_listener.before b
            where b.kind = 'column' and b.relation = 'push_devices' and b.name = a.attname)
  loop
    execute format('alter table public.push_devices drop column %I', old.name);
  end loop;
end
$$;
