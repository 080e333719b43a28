-- migrate: loses select * from push_listener.losses('push_notifications')
-- Takes away what 0002 added. An adopted table keeps its rows and every column it had.
do $$
declare
  old record;
begin
  if push_listener.adopted('push_notifications') then
    -- What is not over goes back to where the application looks for it, as do the rows that were too old to be sent.
    -- Triggers of the application's run with the search_path that its own sessions have; the statements themselves are
    -- read with the search_path of this one.
    with path as materialized (select set_config('search_path', null, true) as of_the_application)
    update public.push_notifications
      set status = 'pending'
      from path
      where error_code = 'STALE_AT_ADOPTION' and status = 'expired'
         or status = 'processing' and claimed_by is not null
         or status in ('processing', 'failed') and next_attempt_at is not null and delivery_attempts > 0;
    set constraints all immediate; -- a table with triggers to come cannot be changed
    set local search_path = pg_catalog, pg_temp;

    -- Statuses that the application does not know become the nearest that it does.
    for old in
      select k.conname, pg_get_expr(k.conbin, k.conrelid) as condition,
             substring(b.definition, '^CHECK \((.*)\)(?: NO INHERIT| NOT VALID| NOT ENFORCED)*$') as before
        from push_listener.before b
        join pg_constraint k on k.conrelid = 'public.push_notifications'::regclass and k.conname = b.name
        where b.kind = 'check' and b.relation = 'push_notifications'
    loop
      execute format(
        'with path as materialized (select set_config(''search_path'', null, true) as of_the_application)
         update public.push_notifications
           set status = case status when ''processing'' then ''pending'' when ''delivered'' then ''sent'' else ''failed'' end
           from path
           where status in (''processing'', ''delivered'', ''dead'', ''expired'', ''cancelled'') and not (%s)', old.before);
      set constraints all immediate;
      set local search_path = pg_catalog, pg_temp;
    end loop;
  end if;

  perform push_listener.give_back('push_notifications', '{user_id,device_token,topic,condition,title,body,data,channel,'
    'priority,image,options,expires_at,collapse_key,idempotency_key,next_attempt_at,status,retry_count,last_retry_at,'
    'delivery_attempts,last_error,error_code,fcm_message_id,claimed_by,lost_claims,sent_at,delivered_at,created_at,updated_at}');
end
$$;
