-- Takes away what 0002 added. An adopted table keeps its rows and every column it had; a table that push-listener made
-- goes only when it is empty, or when `migrate --down ... --discard-data` says so.
do $$
declare
  adopted boolean := exists (
    select from push_listener.before where kind = 'table' and relation = 'push_notifications');
  old record;
begin
  if not adopted then
    if exists (select from public.push_notifications)
       and coalesce(current_setting('push_listener.discard_data', true), '') <> 'on' then
      raise exception using errcode = 'object_not_in_prerequisite_state',
        message = 'push_notifications was made by push-listener and holds rows',
        hint = 'Nothing has been changed. Save the rows, then roll back with --discard-data.';
    end if;
    drop table public.push_notifications;
    return;
  end if;

  -- Statuses that the application does not know go back to the nearest one it does.
  if exists (select from push_listener.before where kind = 'check' and relation = 'push_notifications') then
    update public.push_notifications
      set status = case status when 'processing' then 'pending' when 'delivered' then 'sent' else 'failed' end
      where status in ('processing', 'delivered', 'dead', 'expired', 'cancelled');
    for old in
      select name, definition from push_listener.before where kind = 'check' and relation = 'push_notifications'
    loop
      execute format('alter table public.push_notifications drop constraint if exists %I', old.name);
      execute format('alter table public.push_notifications add constraint %I check (%s)', old.name, old.definition);
    end loop;
  end if;
  for old in
    select a.attname as name from pg_attribute a
      where a.attrelid = 'public.push_notifications'::regclass and a.attnum > 0 and not a.attisdropped
        and a.attname in ('user_id', 'device_token', 'topic', 'condition', 'title', 'body', 'data', 'channel',
          'priority', 'image', 'options', 'expires_at', 'collapse_key', 'idempotency_key', 'next_attempt_at',
          'status', 'retry_count', 'last_retry_at', 'delivery_attempts', 'last_error', 'error_code',
          'fcm_message_id', 'claimed_by', 'sent_at', 'delivered_at', 'created_at', 'updated_at')
        and not exists (
          select from push_listener.before b
            where b.kind = 'column' and b.relation = 'push_notifications' and b.name = a.attname)
  loop
    execute format('alter table public.push_notifications drop column %I', old.name);
  end loop;
end
$$;
