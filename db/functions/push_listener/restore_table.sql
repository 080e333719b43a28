-- revision 1
-- "migrate --down" of one table. A table that push-listener created is dropped if it is empty. An adopted table gets
-- its old shape back. Rows that the old shape cannot hold stop the rollback, unless --discard-data lets them be
-- deleted.
--
-- Triggers of the application on rows that are updated or deleted run with the search_path of the application's
-- sessions: the statements set it (v_path here and in the functions below), and are themselves parsed before that.
--
-- A table that somebody has dropped and made anew is not the one that was changed, and is left as it is.
create or replace function push_listener.restore_table(p_table text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table constant regclass := pg_catalog.to_regclass(pg_catalog.format('public.%I', p_table));
  v_discard constant boolean := pg_catalog.current_setting('push_listener.discard_data', true) is not distinct from 'on';
  v_changes text;
begin
  if not push_listener.is_as_left(p_table) or push_listener.keeps(p_table) then
    if v_table is not null then
      raise warning '%', pg_catalog.format(
        case when push_listener.keeps(p_table) then '%I stays, with its rows and all of its columns'
             else '%I has been made anew since, and is left as it is' end, p_table);
    end if;
    delete from push_listener.adoption_record where relation = p_table;
    return;
  end if;
  if not push_listener.adopted(p_table) then
    execute pg_catalog.format('drop table %s', v_table);
    delete from push_listener.adoption_record where relation = p_table;
    return;
  end if;

  select pg_catalog.string_agg(change, ', ' order by place) into v_changes
    from (
      select 1, pg_catalog.format('drop constraint if exists %I', b.name)
        from push_listener.adoption_record b
        where b.kind = 'check' and b.relation = p_table
      union all
      select 2, pg_catalog.format('drop column %I', a.attname)
        from pg_catalog.pg_attribute a
        where a.attrelid = v_table and a.attnum > 0 and not a.attisdropped
          -- push-listener never adds the key of a table that exists.
          and a.attname = any (push_listener.columns(p_table)) and a.attname not in ('id', 'token')
          and not exists (
            select from push_listener.adoption_record b
              where b.kind = 'column' and b.relation = p_table and b.name = a.attname)
      union all
      select 3, pg_catalog.format('alter column %I type %s using %1$I::%2$s', b.name, b.definition)
        from push_listener.adoption_record b
        where b.kind = 'type' and b.relation = p_table
      union all
      select 4, pg_catalog.format('alter column %I drop default', b.name)
        from push_listener.adoption_record b
        join push_listener.adoption_record c on c.kind = 'column' and c.relation = p_table and c.name = b.name
        where b.kind = 'default' and b.relation = p_table
      union all
      select 5, pg_catalog.format('reset (%I)', b.name)
        from push_listener.adoption_record b
        where b.kind = 'storage' and b.relation = p_table
      union all
      select 6, case b.definition when 'off' then 'disable row level security, no force row level security'
                  when 'on' then 'enable row level security, no force row level security'
                  else 'enable row level security, force row level security' end
        from push_listener.adoption_record b
        where b.kind = 'security' and b.relation = p_table
    ) as t(place, change);
  execute pg_catalog.format('alter table %s %s', v_table, v_changes);

  perform push_listener.restore_not_null(p_table, v_discard);
  perform push_listener.restore_checks(p_table, v_discard);
  delete from push_listener.adoption_record
    where relation = p_table and kind in ('check', 'required', 'type', 'default', 'storage');
end
$$;
revoke all on function push_listener.restore_table from public;
