-- migrate: loses select * from push_listener.losses('push_notifications')
-- An adopted table keeps its rows and every column it had.
do $$
declare
  old record;
  v_some boolean;
begin
  if push_listener.adopted('push_notifications') and push_listener.is_as_left('push_notifications') then
    -- Pushes that are not finished go back to 'pending', where the application looks for them, and so do the rows
    -- that were too old to be sent. Triggers of the application run with the search_path of its own sessions; the
    -- statements themselves are parsed with the search_path of this one.
    --
    -- A publication may refuse an update even of no row.
    if exists (
      select from public.push_notifications
        where error_code = 'STALE_AT_ADOPTION' and status = 'expired'
           or status = 'processing' and claimed_by is not null
           or status in ('processing', 'failed') and next_attempt_at is not null and delivery_attempts > 0
    ) then
      with path as materialized (select set_config('search_path', null, true) as of_the_application)
      update public.push_notifications
        set status = 'pending'
        from path
        where error_code = 'STALE_AT_ADOPTION' and status = 'expired'
           or status = 'processing' and claimed_by is not null
           or status in ('processing', 'failed') and next_attempt_at is not null and delivery_attempts > 0;
    end if;
    set constraints all immediate; -- ALTER TABLE fails while trigger events are pending
    set local search_path = pg_catalog, pg_temp;

    -- A status that the application does not know becomes the nearest one that it knows.
    for old in
      select k.conname, pg_get_expr(k.conbin, k.conrelid) as condition,
             substring(b.definition, '^CHECK \((.*)\)(?: NO INHERIT| NOT VALID| NOT ENFORCED)*$') as before
        from push_listener.adoption_record b
        join pg_constraint k on k.conrelid = 'public.push_notifications'::regclass and k.conname = b.name
        where b.kind = 'check' and b.relation = 'push_notifications'
    loop
      execute format(
        'select exists (select from public.push_notifications
           where status in (''processing'', ''delivered'', ''dead'', ''expired'', ''cancelled'') and not (%s))', old.before)
        into v_some;
      continue when not v_some;
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

  perform push_listener.restore_table('push_notifications');
end
$$;

drop function if exists push_listener.unclaimable(integer, uuid[], integer, double precision, text);
drop table push_listener.unwritable_rows;
